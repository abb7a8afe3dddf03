"""Several devices in one word: ``pi,jetson``, ``@TAG``, ``all``."""

from __future__ import annotations

import difflib

from kdedge.errors import UserError

from kdedge_bench.devices import ALL_NAME, Device, config_path, get_device, list_devices

_TAG_SIGN = "@"


def names_several(wish: str) -> bool:
    """Whether a word may mean several devices, by its form alone: a list, a tag, or ``all``."""
    return "," in wish or wish == ALL_NAME or wish.startswith(_TAG_SIGN)


def select_devices(wish: str) -> list[Device]:
    """The devices that a word means, each once, in the order in which they are named.

    Args:
        wish: Names, tags (``@TAG``) and ``all`` (every device in ``devices.toml``: not this machine), separated
            by commas.

    Raises:
        UserError: a name or a tag that nobody has (the nearest is named), an empty part, or no device yet.
    """
    found: dict[str, Device] = {}
    for part in wish.split(","):
        found.update((device.name, device) for device in _meant(part.strip(), wish))
    return list(found.values())


def _meant(part: str, wish: str) -> list[Device]:
    if not part:
        raise UserError(
            f"{ascii(wish)[:80]} names no device between its commas", cure="Write names, tags or all: pi,jetson,@shelf"
        )
    known = [device for device in list_devices() if not device.is_local]
    if part == ALL_NAME:
        if not known:
            raise UserError(
                "no device is known yet",
                where=config_path(),
                cure="Add one with: kdedge device add pi pi@raspberrypi.local --kind pi",
            )
        return known
    if not part.startswith(_TAG_SIGN):
        return [get_device(part)]
    tag = part[len(_TAG_SIGN) :]
    tagged = [device for device in known if tag in device.tags]
    if not tagged:
        tags = sorted({tag for device in known for tag in device.tags})
        near = difflib.get_close_matches(tag, tags, 1, 0.5)
        hint = f"Did you mean @{near[0]}? Otherwise tag" if near else "Tag"
        raise UserError(
            f"no device has the tag {ascii(tag)[:80]}; known: {', '.join(tags) or 'none'}",
            where=config_path(),
            cure=f"{hint} one with: kdedge device add NAME USER@HOST --replace --tag TAG, and a --tag for each it has",
        )
    return tagged
