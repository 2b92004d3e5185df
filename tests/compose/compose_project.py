"""One compose project of this checkout, under a name, tags and ports of its own."""

from __future__ import annotations

import json
import os
import subprocess
import uuid

from pagefleet.workers.local.ports import free_port

PORTS = ("REDIS_PORT", "GATEWAY_PORT", "FLOWER_PORT", "PROMETHEUS_PORT")
IMAGES = ("producer", "worker", "flower")


class Project:
    """Compose in a copy of the checkout, to which a wheels/ may be added.

    Args:
        environment: finds the engine.
    """

    def __init__(self, folder, environment):
        self.folder = folder
        self.name = f"pftest-{uuid.uuid4().hex[:8]}"
        self.ports = {name: free_port() for name in PORTS}
        self._environment = {
            **os.environ,
            **environment,
            **{name: str(port) for name, port in self.ports.items()},
            "COMPOSE_PROJECT_NAME": self.name,
            "PAGEFLEET_TAG": self.name,
            "HEALTH_INTERVAL": "2s",
        }

    def set(self, **variables):
        """What a user would write to .env."""
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))

    def lacks(self, *commands):
        self._environment["REDIS_LACKS"] = " ".join(commands)

    def compose(self, *arguments, timeout_s=900):
        return self._run(["docker", "compose", *arguments], timeout_s)

    def docker(self, *arguments, timeout_s=300):
        return self._run(["docker", *arguments], timeout_s)

    def build(self):
        # One after the other: the classic builder would make the stages that they share anew for each.
        for service in ("secrets", "flower", "init"):
            self.compose("build", "--quiet", service)

    def image_bytes(self, image):
        return int(self.docker("image", "inspect", "-f", "{{.Size}}", f"pagefleet-{image}:{self.name}"))

    def containers(self, service):
        """Ids of the service's containers that run."""
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container):
        return json.loads(self.docker("inspect", container))[0]

    def signal(self, container, number):
        """To the container's process itself, as the host sees it: after `docker kill` Docker would not start
        it again. From a container that sees the host's processes, for engines that are elsewhere."""
        pid = self.inspect(container)["State"]["Pid"]
        code = f"import os; os.kill({pid}, {int(number)})"
        self.docker(
            "run", "--rm", "--pid", "host", "--user", "0", "--entrypoint", "python3",
            f"pagefleet-producer:{self.name}", "-c", code,
        )  # fmt: skip

    def python(self, image, code):
        """Runs a line of Python in a container of this image."""
        self.docker("run", "--rm", "--entrypoint", "python3", f"pagefleet-{image}:{self.name}", "-c", code)

    def client(self, *arguments):
        """What the README's command prints."""
        return self.compose("run", "--rm", "client", *arguments)

    def read(self, service, path):
        return self.compose("exec", "-T", service, "cat", path).strip()

    def down(self):
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")

    def remove_images(self):
        for image in IMAGES:
            subprocess.run(
                ["docker", "image", "rm", "--force", f"pagefleet-{image}:{self.name}"],
                env=self._environment, capture_output=True,
            )  # fmt: skip

    def left_behind(self):
        """Everything of this project that the engine still knows, by kind."""
        label = f"label=com.docker.compose.project={self.name}"
        return {
            "containers": self.docker("ps", "--all", "--quiet", "--filter", label),
            "volumes": self.docker("volume", "ls", "--quiet", "--filter", label),
            "networks": self.docker("network", "ls", "--quiet", "--filter", label),
        }

    def _run(self, command, timeout_s):
        # No terminal: Compose would want to set it, and be stopped where it is in the background.
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": timeout_s}
        done = subprocess.run(command, cwd=self.folder, env=self._environment, **options)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout
