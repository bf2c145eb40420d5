"""What goes wrong in a world: each makes it so, and gives back what makes it right again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from aioconnect.testing.serving import Live
from tests.dst.ground import MOODS, Machine

if TYPE_CHECKING:
    from tests.dst.world import World

__all__ = ("TROUBLES", "Trouble")

LIVES: tuple[Live, ...] = get_args(Live)


def killed(world: World, machine: Machine) -> Callable[[], None]:
    live: Live = world.rng.choice(LIVES)
    world.note("stop", machine.host.name, live)
    machine.server.stop(live)
    return machine.server.start


def crashed(world: World, machine: Machine) -> Callable[[], None]:
    world.note("crash", machine.host.name)
    machine.host.crash()
    return lambda: None


def stuck(world: World, machine: Machine) -> Callable[[], None]:
    world.note("pause", machine.host.name)
    machine.server.backlog = 1
    machine.server.pause()

    def end() -> None:
        machine.server.backlog = 128
        machine.server.resume()

    return end


def down(world: World, machine: Machine) -> Callable[[], None]:
    world.note("down", machine.host.name)
    machine.host.down()
    return machine.host.up


def cut(world: World, machine: Machine) -> Callable[[], None]:
    one_way = world.rng.random() < 0.5
    clients = [host for host, _ in world.endpoints]
    sides = [machine.host, world.rng.choice(clients)]
    world.rng.shuffle(sides)
    return world.network.partition(sides[0], sides[1], one_way=one_way).heal


def lossy(world: World, machine: Machine) -> Callable[[], None]:
    client = world.rng.choice([host for host, _ in world.endpoints])
    settings: dict[str, Any] = {
        "latency": world.rng.choice((0.0, 0.3)),
        "jitter": 0.05,
        "loss": world.rng.choice((0.02, 0.3)),
    }
    world.note("loss", client.name, machine.host.name, *settings.values())
    world.network.link(client, machine.host, **settings)
    return lambda: world.network.link(client, machine.host, latency=0.002)


def moody(world: World, machine: Machine) -> Callable[[], None]:
    machine.mood = mood = world.rng.choice(MOODS)
    world.note("mood", machine.host.name, mood)

    def end() -> None:
        machine.mood = ""

    return end


def scripted(world: World, machine: Machine) -> Callable[[], None]:
    steps = (
        "ECONNREFUSED",
        "EHOSTUNREACH 1s",
        "ENETUNREACH",
        "EACCES",
        "EACCES",
        "EACCES 1s",
        "hang",
        "reset after 3",
        "close after 9",
        "stall",
    )
    step, place = world.rng.choice(steps), f"{machine.host.name}:{machine.port}"
    world.note("script", place, step)
    world.network.script(place, step)
    return lambda: world.network.script(place, "ok")


def renamed(world: World, machine: Machine) -> Callable[[], None]:
    name = f"svc{machine.port}"
    everywhere = [address for each in world.machines[machine.port] for address in each.addresses]
    answers = ["EAI_AGAIN", "EAI_NONAME", ["10.9.9.9"], world.rng.sample(everywhere, 1), ["10.9.9.9", *everywhere]]
    answer = world.rng.choice(answers)
    world.note("dns", name, answer)
    world.network.dns(name, answer)
    for each in world.machines[machine.port]:
        each.well_since = world.loop.time()
    return lambda: world.network.dns(name, everywhere)


def short(world: World, machine: Machine) -> Callable[[], None]:
    world.note("short of sockets")
    world.network.short(of_files=world.rng.random() < 0.5)

    def end() -> None:
        world.network.shortage = 0

    return end


Trouble = Callable[["World", Machine], Callable[[], None]]

TROUBLES: tuple[Trouble, ...] = (
    *(killed, killed, killed, crashed, stuck, down, cut, cut),
    *(lossy, moody, moody, scripted, renamed, short),
)
"""As often as they stand here."""
