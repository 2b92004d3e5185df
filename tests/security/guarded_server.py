"""A real Valkey with the users of ``ops/redis/users.acl``."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import redis

from pagefleet.workers.local.redis_server import RedisServer

TEMPLATE = Path(__file__).parents[2] / "ops" / "redis" / "users.acl"
PASSWORDS = {
    "producer": "sentinel-p4ss-producer",
    "worker": "sentinel-p4ss-worker",
    "monitor": "sentinel-p4ss-mon",
}
ADMIN = ("admin", "only-for-the-test")


class GuardedServer(RedisServer):
    """The template's users, with passwords, and one more who may ask what was denied."""

    def __init__(self, folder):
        # The server takes no comments in an ACL file.
        text = "".join(
            line for line in TEMPLATE.read_text().splitlines(keepends=True) if line.startswith("user ")
        )
        for name, password in PASSWORDS.items():
            text = text.replace(f"{name.upper()}_PASSWORD", password)
        folder.mkdir(parents=True, exist_ok=True)
        users = folder / "users.acl"
        users.write_text(f"{text}user {ADMIN[0]} on >{ADMIN[1]} allkeys allchannels allcommands\n")
        super().__init__(folder / "data", options={"aclfile": str(users)}, credentials=ADMIN)

    def url_of(self, user):
        return f"redis://{user}:{PASSWORDS[user]}@127.0.0.1:{self.port}/0"

    def client_of(self, user):
        return redis.Redis.from_url(self.url_of(user), decode_responses=True)

    def denied(self):
        """What users were refused since the last :meth:`forget_denied`, one line each."""
        with self.admin() as admin:
            return sorted(f"{e['username']}: {e['reason']} {e['object']}" for e in admin.acl_log())

    def forget_denied(self):
        with self.admin() as admin:
            admin.acl_log_reset()

    def admin(self):
        return redis.Redis(port=self.port, username=ADMIN[0], password=ADMIN[1], decode_responses=True)


@contextlib.contextmanager
def captured_events(app):
    """Every event that workers and producers send meanwhile, in a list that grows."""
    seen, stop = [], threading.Event()

    def listen():
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": seen.append})
            with receiver.consumer_context(wakeup=False) as (own, _channel, _consumers):
                while not stop.is_set():
                    with contextlib.suppress(TimeoutError):
                        own.drain_events(timeout=0.5)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
