"""Vast's API through its own SDK, with what the SDK leaves to its caller: answers that lie, and answers that lack.

Facts about the service (docs.vast.ai, and what its users tell): a refused request may come back as 200 with `success:
false`; a bad key answers 404; the single read may answer null for an instance that is there. Only a destruction that
was taken, and then both the single read and the list, prove that one is gone.
"""

import os
import time
from collections.abc import Callable

import requests

from ups.console import console
from ups.errors import UserError, first_line

STRANGE = (ValueError, LookupError, TypeError, AttributeError)  # raised by the SDK for an answer in an unknown shape
TRIES = 5  # of a request that may be repeated
PAGE = 25  # instances


class NotRented(Exception):
    """The offer is taken or was refused; nothing was rented by this request."""


class Unclear(Exception):
    """The answer does not say whether something was rented: look for the label."""


class Vast:
    """`pause`: seconds before the first repeat of a request (Vast allows one destroy every 3 s); it doubles.
    `timeout`: seconds for an answer."""

    def __init__(self, pause: float, timeout: float):
        import vastai  # 0.3 s, during which the check of the networks is on its way

        self.pause = pause
        try:
            # The SDK's own repeats span 0.4 s, and it repeats what must not be.
            self.sdk = vastai.VastAI(retry=1, server_url=os.environ.get("VAST_URL"))
        except RuntimeError:
            raise UserError("no key of Vast: export VAST_API_KEY=KEY, or vastai set api-key KEY") from None
        self.sdk.client.timeout = timeout

    def search(self, query: dict, interruptible: bool, disk: float) -> list[dict]:
        """Offers, their `dph_total` in dollars an hour with `disk` GB."""
        kind = "bid" if interruptible else "on-demand"
        return self._repeat(
            lambda: self.sdk.search_offers(
                query=dict(query), type=kind, order="dph_total", limit=64, storage=disk, no_default=True
            )
        )

    def create(self, offer_id: int, **settings) -> int:
        """The instance's id; the answer itself holds a secret and goes nowhere. Sent once: a repeat may rent twice.

        Raises `NotRented`, `Unclear`, or `UserError` for a bad key.
        """
        for attempt in range(1, TRIES + 1):
            try:
                answer = self.sdk.create_instance(offer_id, cancel_unavail=True, ssh=True, direct=True, **settings)
                break
            except requests.HTTPError as error:
                status = error.response.status_code
                answer = {"msg": f"{status}"} | _json(error.response)
                if status == 429 and attempt < TRIES:  # refused before it was looked at
                    time.sleep(self.pause * 2 ** (attempt - 1))
                    continue
                if status >= 500:
                    raise Unclear(f"{status}") from error
                _refuse_bad_key(error)
                break
            except (requests.RequestException, ValueError) as error:
                raise Unclear(type(error).__name__) from error
        if not isinstance(answer, dict):
            raise Unclear("the answer is no object")
        instance_id = answer.get("new_contract")
        if answer.get("success") is True and isinstance(instance_id, int):
            return instance_id
        reason = _reason_of(answer)
        if isinstance(instance_id, int):  # refused (a bid too low), and yet there is a stopped instance
            if not self.destroy(instance_id):
                raise Unclear(reason)
            raise NotRented(reason)
        if answer.get("success") is False or "no_such_ask" in reason:
            raise NotRented(reason)
        raise Unclear(reason)  # also a page of what stands between, which may have passed the request on

    def show(self, instance_id: int) -> dict | None:
        """One instance, None if it does not exist; the row holds the environment's secrets."""
        row = self._repeat(lambda: self.sdk.show_instance(instance_id))
        return row or next((each for each in self.instances("") if each["id"] == instance_id), None)

    def instances(self, prefix: str) -> list[dict]:
        """All whose label starts with `prefix`."""
        belongs = lambda row: (row.get("label") or "").startswith(prefix)
        return self._repeat(lambda: [row for row in self._all_instances() if belongs(row)])

    def _all_instances(self) -> list[dict]:
        """Page by page. To the SDK's own list an answer that holds none is an empty one, and so a bill is ended."""
        rows, query = [], {"order_by": [{"col": "id", "dir": "asc"}], "limit": PAGE}
        while True:
            answer = self.sdk.show_instances_v1(query)
            if not isinstance(answer["instances"], list):
                raise TypeError("the answer holds no list of instances")
            rows += answer["instances"]
            if not answer.get("next_token"):
                return rows
            query["after_token"] = answer["next_token"]

    def destroy(self, instance_id: int) -> bool:
        """True only if the service took it, and a read after it shows that the instance is gone."""
        taken = False
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                taken |= self.sdk.destroy_instance(instance_id).get("success") is True
            except requests.HTTPError as error:
                taken |= _json(error.response).get("error") == "no_such_instance"
                console.print(f"destroy {instance_id}: {_reason(error)}")
            except (requests.RequestException, *STRANGE) as error:
                console.print(f"destroy {instance_id}: {_reason(error)}")
            try:
                if self.show(instance_id) is None and taken:
                    return True
            except UserError as error:
                console.print(f"show {instance_id}: {_reason(error)}")
        return False

    def logs(self, instance_id: int, tail: int) -> str:
        """The last `tail` lines, "" while the service has none ready."""
        try:
            answer = self._repeat(lambda: self.sdk.logs(instance_id, tail=str(tail)))
        except TimeoutError:
            return ""
        return answer if isinstance(answer, str) else str((answer or {}).get("msg", ""))

    def _repeat(self, request: Callable):
        """Reads, through rate limits and lost connections; None if the instance does not exist."""
        for attempt in range(1, TRIES + 1):
            try:
                return request()
            except requests.HTTPError as error:
                _refuse_bad_key(error)
                status, answer = error.response.status_code, _json(error.response)
                if answer.get("error") == "no_such_instance":
                    return None
                if attempt == TRIES or (status != 429 and status < 500):
                    raise UserError(f"Vast answers {status}: {_reason_of(answer)}") from error
            except (requests.RequestException, *STRANGE) as error:
                if attempt == TRIES:
                    raise UserError(
                        f"no usable answer of {self.sdk.client.server_url} ({_reason(error)}): is it reachable?"
                    ) from error
            time.sleep(self.pause * 2 ** (attempt - 1))
        raise AssertionError("unreachable")


def _refuse_bad_key(error: requests.HTTPError) -> None:
    answer = _json(error.response)
    if error.response.status_code == 401 or answer.get("error") == "auth_error":
        raise UserError(
            f"Vast refuses the key ({_reason_of(answer)}): vastai set api-key KEY, or export VAST_API_KEY=KEY"
        ) from error


def _reason_of(answer: dict) -> str:
    """Which of the two says more differs from request to request."""
    return ": ".join(str(answer[name]) for name in ("error", "msg") if answer.get(name)) or "no reason given"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _json(response: requests.Response) -> dict:
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
