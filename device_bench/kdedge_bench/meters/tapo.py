"""TP-Link's Tapo plugs with an energy meter (P110, P110M, P115), which ask for the account they belong to.

Through tapo (MIT, maintained, wheels for Python 3.11 on): its own code would be a handshake and a cipher, which this
project is not about; python-kasa and plugp100, which speak it too, are GPL-3. The account stays in the environment and
comes into no record. As with Kasa plugs, no rate is stated: a reading is taken to be of the second before it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from kdedge.errors import UserError

from kdedge_bench.meters.meter import MeterError, Reading, polled
from kdedge_bench.text import one_line

USER_VARIABLE = "KDEDGE_TAPO_USER"
PASSWORD_VARIABLE = "KDEDGE_TAPO_PASSWORD"  # noqa: S105 - the variable's name
TIMEOUT_S = 5
RENEWED_S = 1.0


class TapoMeter:
    """A Tapo plug, read once a second.

    Args:
        address: Host or address.
    """

    accuracy: float | None = None
    covers = "the whole board at the wall, with the loss of its power supply"

    def __init__(self, address: str) -> None:
        self.name = f"tapo plug at {address}"
        self.time_error_s = 0.0
        self._address = address
        self._loop: asyncio.AbstractEventLoop | None = None
        self._plug: Any = None

    def open(self) -> None:
        """Log in, and see that the plug measures.

        Raises:
            UserError: tapo is not installed, or no account is named.
            MeterError: the plug does not answer, or refuses the account.
        """
        try:
            from tapo import ApiClient
        except ImportError:
            raise UserError(
                "tapo is not installed, which --meter tapo needs",
                cure="pip install 'kdedge[tapo]' (Python 3.11 or newer)",
            ) from None
        user, password = os.environ.get(USER_VARIABLE), os.environ.get(PASSWORD_VARIABLE)
        if not user or not password:
            raise UserError(
                "the Tapo account is not named", cure=f"Set {USER_VARIABLE} and {PASSWORD_VARIABLE} in the environment"
            )
        self._loop = asyncio.new_event_loop()
        client = ApiClient(user, password, timeout_s=TIMEOUT_S)
        self._plug = self._ask(lambda: client.p110(self._address))
        info = self._ask(self._plug.get_device_info_json)
        model = one_line(str(info.get("model", "of unknown model")), 40)
        self.name = f"tapo plug {model} at {self._address}"
        self._read()

    def readings(self, stop: threading.Event) -> Iterator[Reading]:
        """A reading each second.

        Raises:
            MeterError: it does not answer any more.
        """
        return polled(self._read, RENEWED_S, stop)

    def close(self) -> None:
        """Let go of the plug."""
        self._plug = None
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _read(self) -> Reading:
        begin_s = time.monotonic()
        milliwatts = self._ask(self._plug.get_energy_usage).current_power
        end_s = time.monotonic()
        if milliwatts is None:
            raise MeterError("the plug said no watts", where=self._address, cure="Use one that measures: P110, P115")
        self.time_error_s = max(self.time_error_s, (end_s - begin_s + RENEWED_S) / 2)
        return Reading((begin_s + end_s - RENEWED_S) / 2, milliwatts * 1e-3)

    def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        async def answered() -> Any:
            return await asyncio.wait_for(question(), 2 * TIMEOUT_S)

        if self._loop is None:
            raise MeterError("the plug is not open", where=self._address)
        try:
            return self._loop.run_until_complete(answered())
        except Exception as error:  # tapo raises plain exceptions
            said = one_line(str(error) or type(error).__name__, 120)
            raise MeterError(
                f"the plug does not answer: {said}",
                where=self._address,
                cure=f"Check its address, the account in {USER_VARIABLE} and {PASSWORD_VARIABLE}, and in the Tapo app "
                "that third-party access is on",
            ) from None
