"""Which machine, and until when: the config's filters as a search, and the money's limits as one deadline."""

import math
from dataclasses import dataclass

from omegaconf import DictConfig
from rich.table import Table

from ups.errors import UserError

BID_ABOVE_MINIMUM = 1.1
SHOWN = 5


@dataclass(frozen=True)
class Offer:
    """price: dollars an hour with the disk; traffic: dollars for the run's downloads; hours: how long it may run."""

    id: int
    machine_id: int
    gpu: str
    memory: float  # GB of each GPU
    place: str
    reliability: float
    price: float
    bid: float | None
    traffic: float
    hours: float

    @property
    def cost(self) -> float:
        """Dollars at the deadline: what the run costs at most."""
        return self.price * self.hours + self.traffic


def query(wanted: DictConfig, hours: float, disk: float, interruptible: bool) -> dict:
    """In the units of the API: memory in MB, durations in seconds."""
    filters = {
        "rentable": {"eq": True},
        "num_gpus": {"eq": wanted.gpus},
        "gpu_ram": {"gte": wanted.gpu_memory * 1000},
        "disk_space": {"gte": disk},
        "reliability": {"gte": wanted.reliability},
        "cuda_max_good": {"gte": wanted.cuda},
        "duration": {"gte": hours * 3600},
    }
    if not interruptible:
        filters["rented"] = {"eq": False}
    if wanted.verified:
        filters |= {"verified": {"eq": True}, "external": {"eq": False}}
    if wanted.gpu:
        filters["gpu_name"] = {"in": [name.replace("_", " ") for name in wanted.gpu]}
    if wanted.region:
        filters["geolocation"] = {"in": list(wanted.region)}
    return filters


def rank(rows: list[dict], settings: DictConfig, money: float, shunned: set[int]) -> list[Offer]:
    """What may be rented, the cheapest for `vast.max_hours` first. `money`: dollars this run may still cost."""
    possible = [row for row in rows if row["machine_id"] not in shunned and not is_outbid(row, settings)]
    offers = [offer_of(row, settings, money) for row in possible]
    affordable = [offer for offer in offers if offer.price <= settings.max_price and offer.hours >= settings.min_hours]
    return sorted(affordable, key=lambda offer: offer.price * settings.max_hours + offer.traffic)


def is_outbid(row: dict, settings: DictConfig) -> bool:
    """Whether the machine is not to be had for `vast.bid`."""
    return bool(settings.interruptible and settings.bid) and settings.bid < row["min_bid"]


def offer_of(row: dict, settings: DictConfig, money: float) -> Offer:
    price, bid = row["dph_total"], None
    if settings.interruptible:
        bid = settings.bid or round(row["min_bid"] * BID_ABOVE_MINIMUM, 4)
        price = bid + (row.get("storage_total_cost") or max(row["dph_total"] - row["dph_base"], 0.0))
    traffic = settings.traffic * (row.get("inet_down_cost") or 0.0)
    return Offer(
        id=row["id"], machine_id=row["machine_id"], gpu=f"{row['num_gpus']}x {row['gpu_name']}",
        memory=row["gpu_ram"] / 1000, place=row.get("geolocation") or "?", reliability=row.get("reliability2") or
        row.get("reliability") or 0.0, price=price, bid=bid, traffic=traffic,
        hours=min(settings.max_hours, max(money - traffic, 0.0) / price if price else math.inf),  # one's own is free
    )  # fmt: skip


def no_offer(rows: list[dict], settings: DictConfig, money: float, shunned: set[int], taken: set[int]) -> UserError:
    """Why there is nothing to rent among what was found. `taken`: the offers that were tried."""
    keys = "vast.offer.* (gpu, gpu_memory, reliability, cuda, region), vast.disk or vast.max_hours"
    if not rows:
        return UserError(f"no {'other ' if taken else ''}offer fits: loosen {keys}")
    untried = [row for row in rows if row["id"] not in taken]
    whole = [row for row in untried if row["machine_id"] not in shunned]
    outbid = [row["min_bid"] for row in whole if is_outbid(row, settings)]
    reasons = {
        "just tried": len(rows) - len(untried),
        f"of machines that failed in the last week (see vast.ledger={settings.ledger})": len(untried) - len(whole),
        f"above vast.bid={settings.bid}: raise it, to {min(outbid, default=0):g} at least": len(outbid),
        f"too dear: raise vast.max_price={settings.max_price}, or vast.max_cost and vast.max_total_cost (${money:.2f} "
        f"are left), or lower vast.min_hours={settings.min_hours}": len(whole) - len(outbid),
    }
    told = "; ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return UserError(f"no offer is left of the {len(rows)} that fit vast.offer: {told}; or loosen {keys}")


def table(offers: list[Offer]) -> Table:
    summary = Table(title="The best offers; the first is taken", title_justify="left")
    for column in ("offer", "GPU", "GB", "place", "reliable", "$/h with disk", "hours", "at most $"):
        summary.add_column(column, justify="left" if column in ("GPU", "place") else "right")
    for offer in offers[:SHOWN]:
        summary.add_row(
            str(offer.id), offer.gpu, f"{offer.memory:.0f}", offer.place, f"{offer.reliability:.3f}",
            f"{offer.price:.3f}", f"{offer.hours:.1f}", f"{offer.cost:.2f}",
        )  # fmt: skip
    return summary


def reason(offers: list[Offer], settings: DictConfig) -> str:
    best = offers[0]
    limit = "vast.max_hours" if best.hours == settings.max_hours else "vast.max_cost"
    return (
        f"offer {best.id} on machine {best.machine_id}: the cheapest of {len(offers)} for {settings.max_hours:g} h, "
        f"${best.price:.3f} an hour; {limit} ends it after {best.hours:.2f} h and ${best.cost:.2f} at most"
    )
