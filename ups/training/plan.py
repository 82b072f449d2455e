"""What a run will find and what it will train, decided and printed before any work."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ups.console import console
from ups.errors import UserError
from ups.machine import processes
from ups.provenance import git_commit, shortened_commit
from ups.training.identity import Identity
from ups.training.store import Entry


@dataclass
class Planned:
    """One line of the plan and of result.json."""

    entry: Entry
    action: str  # found | trained | resumed
    why: str

    def as_dict(self) -> dict:
        identity = self.entry.identity
        steps = identity.content["stage"]["steps"]
        return {"stage": identity.name, "digest": identity.digest, "action": self.action, "steps": steps}


def make_plan(identity: Identity, store: Path, require: str, origins: dict[str, str]) -> list[Planned]:
    """What will be found and what trained, in order; printed before any work.

    `origins` says of entries that were just brought into the store where they are from.
    """
    plan = []
    for each in identity.chain():
        entry = Entry(store, each)
        place = origins.get(each.folder, str(entry.path))
        if entry.is_trained:
            why = place + "".join(f", {how}" for how in made_otherwise(entry.result()))
            if plan and plan[-1].action != "found":
                why += f", of use only if {plan[-1].entry.identity.folder} comes out as it was"
            plan.append(Planned(entry, "found", why))
        elif entry.is_started:
            plan.append(Planned(entry, "resumed", f"an unfinished training in {place}"))
        else:
            plan.append(Planned(entry, "trained", entry.why_new()))
    lacking = [planned.entry for planned in plan[:-1] if planned.action != "found"]
    if require == "found" and lacking:
        raise UserError(
            f"require=found, and {lacking[0].path} is not trained: train it with "
            f"stage={lacking[0].identity.name}, or set require=train"
        )
    found = [planned.entry.identity for planned in plan if planned.action == "found"]
    check_batch_sizes(identity.chain(), processes(), found)
    return plan


def made_otherwise(result: dict) -> list[str]:
    """What its weights depend on that its identity does not tell, where that is not the usual."""
    commit, precision = (result["made_by"].get(key) for key in ("git_commit", "precision"))
    skipped = result.get("skipped", 0)
    told = [f"by the code of {shortened_commit(commit)}"] if commit not in (None, git_commit()) else []
    told += [f"in {precision}"] if precision not in (None, "float32") else []
    return told + ([f"{skipped} steps skipped"] if skipped else [])


def check_batch_sizes(chain: list[Identity], count: int, found: Collection[Identity] = ()) -> None:
    """Before any work: what is to be trained, the last stage last, has batches of `count` equal parts."""
    for depth, identity in enumerate(reversed(chain)):
        size = identity.content["stage"]["batch_size"]
        if size % count and identity not in found:
            below = size // count * count
            raise UserError(
                f"stage.{'requires.' * depth}batch_size={size}: {count} processes need equal parts of a batch; choose "
                f"{f'{below} or ' if below else ''}{below + count}, or another --nproc-per-node (vast.offer.gpus)"
            )


def print_plan(plan: list[Planned]) -> None:
    for planned in plan:
        identity = planned.entry.identity
        verb = {"found": "found  ", "trained": "train  ", "resumed": "resume "}[planned.action]
        console.print(f"{verb} {identity.folder}  {identity.content['stage']['steps']} steps  ({planned.why})")
