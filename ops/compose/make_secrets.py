"""Passwords for a compose stack, made once: what is there already stays.

    make_secrets.py TEMPLATE FOLDER [COMMAND ...]

The commands are those that the template allows and an older server does not know (Redis 7.0: client|setinfo).
Every service mounts one subfolder, with no more than it needs. The server's holds only hashes.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path

from pagefleet.api.gateway.access.key_file import KeyFile

USERS = ("producer", "worker", "monitor")


def read_or_make(file: Path, prefix: str = "") -> str:
    if not file.exists():
        # In one move: half a password must not be there already at the next start.
        new = file.with_suffix(".new")
        new.write_text(prefix + secrets.token_urlsafe(24) + "\n", encoding="ascii")
        new.chmod(0o444)
        new.rename(file)
    return file.read_text(encoding="ascii").strip()


def make_api_key(folder: Path) -> None:
    """The first one, for the machine itself; the gateway keeps only its hash."""
    keys, key = folder / "keys.json", folder / "key"
    if not keys.exists():
        token, _ = KeyFile(keys).add(tenant="local")
        key.write_text(token + "\n", encoding="ascii")
        key.chmod(0o400)


def main(template: Path, folder: Path, unknown_commands: list[str]) -> None:
    # The server takes no comments in an ACL file.
    lines = [line for line in template.read_text(encoding="utf-8").splitlines() if line.startswith("user ")]
    text = "\n".join([*lines, "user health on nopass resetkeys resetchannels -@all +ping +hello +auth", ""])
    for user in USERS:
        password = read_or_make(folder / user / "redis_password")
        digest = hashlib.sha256(password.encode()).hexdigest()
        text = text.replace(f">{user.upper()}_PASSWORD", f"#{digest}")
    for command in unknown_commands:
        text = text.replace(f" +{command} ", " ")
    users = folder / "redis" / "users.acl"
    users.unlink(missing_ok=True)
    users.write_text(text, encoding="ascii")
    make_api_key(folder / "gateway")
    read_or_make(folder / "flower" / "users", "admin:")
    read_or_make(folder / "grafana" / "admin_password")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), " ".join(sys.argv[3:]).split())
