"""From offers to a running instance, by the real SDK against the stand-in service: no fault leaves anything rented."""

import dataclasses
import time

import pytest

from ups.config.compose import composed
from ups.errors import UserError
from ups.launch.actions import destroy, status
from ups.launch.job import Job
from ups.launch.ledger import Ledger, State, deadline_of, new_label
from ups.launch.provision import offers_for, rent
from ups.launch.rehearsal.vast_server import Fault, VastServer, offer
from ups.launch.repository import Source
from ups.launch.vast_api import Vast

CREATE = r"PUT /api/v0/asks/\d+/"
DESTROY = r"DELETE /api/v0/instances/\d+/"
JOB = Job(
    source=Source("https://host/us/ups", "main", "0" * 40, None), overrides=("stage=operator",), gpus=1,
    auto_shutdown=True, prove="", on_failure="destroy", settings={}, secrets={"WANDB_API_KEY": "wandb-secret"},
    wandb_page=None,
)  # fmt: skip


@pytest.fixture
def server(monkeypatch):
    with VastServer("account-key") as server:
        monkeypatch.setenv("VAST_URL", server.url)
        monkeypatch.setenv("VAST_API_KEY", server.key)
        server.loading_seconds = 0.05
        yield server


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "rentals")


def settings(*overrides: str):
    quick = ["vast.pause=0.02", "vast.poll_seconds=0.02", "vast.loading_minutes=0.01", "vast.request_timeout=3"]
    return composed("launch", [*quick, *overrides]).vast


def rent_one(ledger, *overrides: str, job: Job = JOB, money: float = 2.0):
    chosen = settings(*overrides)
    vast = Vast(chosen.pause, chosen.request_timeout)
    offers = offers_for(vast, chosen, money, ledger.failed_machines(), set())
    return rent(vast, job, chosen, ledger, money, ledger.folder, offers)


def only_instance(server) -> dict:
    (row,) = server.rows.values()
    return row


def test_the_cheapest_machine_is_rented_and_recorded(server, ledger):
    rental = rent_one(ledger)
    row, (create,) = only_instance(server), server.sent(CREATE)
    assert rental.instance_id == row["id"] and rental.machine_id == 100 and row["label"] == rental.label
    assert [each.state for each in ledger.rentals()] == [State.RUNNING]
    assert create.body["cancel_unavail"] is True and create.body["runtype"] == "ssh_direc ssh_proxy"
    assert create.body["onstart"] == JOB.script and create.body["disk"] == 20
    assert create.body["image"] == settings().image
    environment = create.body["env"]
    assert environment["UPS_COMMIT"] == "0" * 40 and environment["WANDB_RUN_ID"] == rental.label
    assert float(environment["UPS_DEADLINE"]) == pytest.approx(rental.deadline, abs=1)
    assert deadline_of(rental.label) == pytest.approx(rental.deadline, abs=1)


def test_filters_and_the_disk_reach_the_search(server, ledger):
    wanted = ["vast.offer.gpu=[RTX_4090]", "vast.offer.region=[SE]", "vast.disk=40", "vast.offer.gpu_memory=16"]
    short = 2.9 * 3600  # of the 3 hours that the run may take
    server.offers += [offer(20, gpu_name="RTX 3060", dph_total=0.01), offer(21, dph_total=0.01, geolocation="X, US"),
                      offer(22, dph_total=0.01, gpu_ram=15_900), offer(23, dph_total=0.01, disk_space=39.0),
                      offer(24, dph_total=0.01, duration=short), offer(25, dph_total=0.01, reliability=0.97),
                      offer(26, dph_total=0.01, cuda_max_good=12.4), offer(27, dph_total=0.01, verified=False),
                      offer(28, dph_total=0.01, num_gpus=2), offer(29, dph_total=0.01, external=True),
                      offer(30, dph_total=0.01, rented=True)]  # fmt: skip
    assert rent_one(ledger, *wanted).offer_id == 1000
    (search,) = server.sent("POST /api/v0/bundles/")
    assert search.body["allocated_storage"] == 40 and search.body["type"] == "on-demand"


def test_an_offer_that_is_dear_in_traffic_loses(server, ledger):
    server.offers[0]["inet_down_cost"] = 0.02
    assert rent_one(ledger).offer_id == 1001


@pytest.mark.parametrize(
    ("limits", "hours", "cost"),
    [
        (["vast.max_hours=2", "vast.max_cost=9", "vast.traffic=0"], 2.0, 0.62),
        (["vast.max_hours=9", "vast.max_cost=0.62", "vast.traffic=0"], 2.0, 0.62),
        (["vast.max_hours=9", "vast.max_cost=0.62", "vast.traffic=100"], (0.62 - 0.2) / 0.31, 0.62),
    ],
    ids=["hours", "dollars", "dollars-and-traffic"],
)
def test_hours_and_dollars_become_one_deadline(limits, hours, cost, server, ledger):
    chosen = settings(*limits)
    rental = rent_one(ledger, *limits, money=chosen.max_cost)
    assert (rental.deadline - rental.asked) / 3600 == pytest.approx(hours, abs=1e-3)
    assert rental.cost_limit == pytest.approx(cost, abs=1e-3)


@pytest.mark.parametrize("limit", ["vast.max_price=0.2", "vast.max_cost=0.1"])
def test_what_is_too_dear_is_not_rented(limit, server, ledger):
    with pytest.raises(UserError, match=limit.partition("=")[0]):
        rent_one(ledger, limit, money=settings(limit).max_cost)
    assert not server.sent(CREATE)


def test_a_bid_below_the_minimum_is_not_made(server, ledger):
    for each in server.offers[:3]:
        each["min_bid"] = 0.3
    assert rent_one(ledger, "vast.interruptible=true", "vast.bid=0.2").offer_id == 1003


def test_why_no_offer_is_left_is_said_with_the_key_of_each_reason(server, ledger):
    with pytest.raises(UserError, match=r"the 8 that fit .*: 8 above vast\.bid=0\.01: raise it, to 0\.15 at least; or"):
        rent_one(ledger, "vast.interruptible=true", "vast.bid=0.01")
    server.exits, server.offers = {100}, server.offers[:2]
    server.offers[1]["dph_total"] = 0.9
    with pytest.raises(UserError, match=r"the 2 that fit .*: 1 just tried; 1 too dear: raise vast\.max_price=0\.8"):
        rent_one(ledger)
    with pytest.raises(UserError, match=r"the 2 that fit .*: 1 of machines that failed .*vast\.ledger.*; 1 too dear"):
        rent_one(ledger)


def test_ones_own_machine_costs_nothing(server, ledger):
    server.offers[5] |= {"dph_total": 0.0, "dph_base": 0.0, "inet_down_cost": 0.0}
    rental = rent_one(ledger)
    assert rental.offer_id == 1005 and rental.cost_limit == 0 and rental.deadline - rental.asked == 3 * 3600


def test_an_interruptible_machine_gets_a_bid(server, ledger):
    rental = rent_one(ledger, "vast.interruptible=true")
    (search,), (create,) = server.sent("POST /api/v0/bundles/"), server.sent(CREATE)
    assert search.body["type"] == "bid" and create.body["price"] == pytest.approx(0.15 * 1.1)
    assert rental.price_per_hour == pytest.approx(0.15 * 1.1 + 0.01)


# The fault table ---------------------------------------------------------------------------------------------------


def test_search_empty(server, ledger):
    server.offers = []
    with pytest.raises(UserError, match=r"vast\.offer"):
        rent_one(ledger)
    assert not server.sent(CREATE)


@pytest.mark.parametrize("answer", [
    (410, {"success": False, "error": "no_such_ask"}),
    (404, {"success": False, "error": "invalid_args", "msg": "error 404/3603: no_such_ask It is not available."}),
], ids=["410", "404"])  # fmt: skip
def test_offer_taken(answer, server, ledger):
    """As often as it happens: it is not the offers' fault."""
    server.faults.append(Fault(CREATE, answer, times=3))
    assert rent_one(ledger).offer_id == 1003
    assert only_instance(server)["machine_id"] == 103
    assert [each.state for each in ledger.rentals()] == 3 * [State.NOT_RENTED] + [State.RUNNING]


@pytest.mark.parametrize(
    "answer",
    [(500, {}), (504, "gateway"), "drop", "cut", (200, "no json"), (200, []), (200, {"success": True}),
     (408, "a proxy's page"), (499, {}), (400, {"error": "timeout"})],
)  # fmt: skip
def test_an_unclear_answer_after_the_instance_was_created(answer, server, ledger):
    server.faults.append(Fault(CREATE, answer, after=True))
    rental = rent_one(ledger)
    assert only_instance(server)["id"] == rental.instance_id and len(server.sent(CREATE)) == 1


@pytest.mark.parametrize("answer", [(500, {}), (504, "gateway"), "drop", (408, "a proxy's page")])
def test_an_unclear_answer_without_an_instance(answer, server, ledger):
    server.faults.append(Fault(CREATE, answer))
    assert rent_one(ledger).offer_id == 1001
    assert len(server.sent(CREATE)) == 2 and len(server.rows) == 1


def test_two_unclear_answers_promise_nothing(server, ledger):
    server.faults.append(Fault(CREATE, (500, {}), times=2))
    with pytest.raises(UserError, match=r"unclear answer \(500.*, and no instance has the label; .*vast.action=reap"):
        rent_one(ledger)
    assert len(server.sent(CREATE)) == 2 and not server.rows


def test_an_unclear_answer_and_a_list_that_cannot_be_read(server, ledger, capsys):
    """What may be billed is said, with the commands that find and end it."""
    server.faults += [Fault(CREATE, (504, {}), after=True), Fault("GET /api/v1/instances/", (500, {}), times=99)]
    with pytest.raises(UserError, match="Vast answers 500"):
        rent_one(ledger)
    (rental,) = ledger.rentals()
    told = f"PERHAPS STILL BILLED: the label is {rental.label}; `python launch_vast.py vast.action=status` looks for it"
    assert rental.is_open and told in capsys.readouterr().err
    server.faults.clear()
    for action in (status, destroy):
        action(settings(), Vast(0.01, 3), ledger)
    assert not server.rows and len(server.sent(CREATE)) == 1


def test_create_success_false(server, ledger):
    server.faults.append(Fault(CREATE, (200, {"success": False, "error": "refused"})))
    assert rent_one(ledger).offer_id == 1001
    assert len(server.rows) == 1
    assert ledger.rentals()[0].notes == ["refused"]


def test_a_refusal_that_is_not_the_offers_fault_is_told(server, ledger):
    why = {"error": "insufficient_credit", "msg": "Your account lacks credit"}
    server.faults.append(Fault(CREATE, (400, {"success": False} | why), times=99))
    with pytest.raises(UserError, match=f"Vast gives none of its offers: {why['error']}: {why['msg']}"):
        rent_one(ledger)
    assert len(server.sent(CREATE)) == 2 and not server.rows


def test_offers_that_are_gone_use_up_no_tries(server, ledger):
    server.faults.append(Fault(CREATE, (410, {"success": False, "error": "no_such_ask"}), times=6))
    assert rent_one(ledger, "vast.max_tries=1").offer_id == 1006


def test_offers_that_are_all_gone_are_not_asked_for_without_end(server, ledger):
    server.offers = [offer(number) for number in range(12)]
    server.faults.append(Fault(CREATE, (410, {"success": False, "error": "no_such_ask"}), times=99))
    with pytest.raises(UserError, match=r"^10 offers were gone when asked for, and none of them is left rented"):
        rent_one(ledger)
    assert len(server.sent(CREATE)) == 10 and {each.state for each in ledger.rentals()} == {State.NOT_RENTED}


def test_a_refusal_that_leaves_a_stopped_instance(server, ledger):
    """A bid that is too low: an error, and an instance that bills its disk."""

    class Refuses(VastServer):
        def _create(self, offer_id, body):
            status, content = super()._create(offer_id, body)
            if offer_id == 1000:
                return 400, {"success": False, "error": "bid_too_low", "new_contract": content["new_contract"]}
            return status, content

    server.__class__ = Refuses
    assert rent_one(ledger).offer_id == 1001
    assert len(server.rows) == 1 and len(server.sent(DESTROY)) == 1


@pytest.mark.parametrize("answer", [(404, {"success": False, "error": "auth_error"}), (401, {})])
@pytest.mark.parametrize("request_", ["POST /api/v0/bundles/", CREATE])
def test_key_wrong(request_, answer, server, ledger):
    server.faults.append(Fault(request_, answer, times=99))
    with pytest.raises(UserError, match="refuses the key"):
        rent_one(ledger)
    assert not server.rows and len(server.sent(request_)) == 1


def test_a_refused_offer_is_not_a_refused_key(server, ledger):
    why = {"success": False, "error": "invalid_args", "msg": "Offer 1000 is not your own"}
    server.faults.append(Fault(CREATE, (403, why)))
    assert rent_one(ledger).offer_id == 1001 and ledger.rentals()[0].notes == [f"invalid_args: {why['msg']}"]


@pytest.mark.parametrize("answer", ["cut", (200, []), (520, "error")])
def test_reads_that_fail_are_repeated(answer, server, ledger):
    server.faults.append(Fault(r"GET /api/v0/instances/\d+/", answer, times=2))
    rent_one(ledger)
    assert len(server.rows) == 1


@pytest.mark.parametrize("request_", ["POST /api/v0/bundles/", CREATE, r"GET /api/v0/instances/\d+/"])
def test_rate_limit(request_, server, ledger):
    server.faults.append(Fault(request_, (429, {"detail": "API requests too frequent"}), times=2))
    rent_one(ledger)
    assert len(server.sent(request_)) >= 3 and len(server.rows) == 1


def test_a_machine_that_never_leaves_loading(server, ledger):
    server.stays_loading = {100}
    rental = rent_one(ledger)
    assert rental.machine_id == 101 and only_instance(server)["id"] == rental.instance_id
    failed, _ = ledger.rentals()
    assert failed.state == State.DESTROYED and "still loading after 0.01 minutes" in failed.machine_failed
    # A later run does not take it again, until a week is over.
    server.offers[1]["rentable"] = True
    assert rent_one(ledger).machine_id != 100
    failed.asked -= 8 * 86400
    ledger.save(failed)
    server.stays_loading.clear()
    assert rent_one(ledger).machine_id == 100


def test_a_machine_that_is_loading_at_its_deadline(server, ledger):
    server.stays_loading = {100}
    with pytest.raises(UserError, match=r"100 was still loading after 0\.00\d+ minutes"):
        rent_one(ledger, "vast.loading_minutes=0.2", "vast.max_hours=1e-4", "vast.min_hours=0", "vast.max_tries=1")
    assert not server.rows


@pytest.mark.parametrize("listed", [True, False])
def test_an_instance_that_is_not_seen_at_first_is_not_gone(listed, server, ledger):
    """The single read answers null for one that was just created; the list may lag too."""
    server.loading_seconds = 0.2
    server.faults.append(Fault(r"GET /api/v0/instances/\d+/", (200, {"instances": None}), times=8 if listed else 3))
    server.faults += [] if listed else [Fault("GET /api/v1/instances/", (200, {"instances": []}), times=3)]
    rental = rent_one(ledger)
    assert len(server.sent(CREATE)) == 1 and set(server.rows) == {rental.instance_id}


def test_an_instance_that_is_gone_while_it_loads(server, ledger):
    class Loses(VastServer):
        def _create(self, offer_id, body):
            status, content = super()._create(offer_id, body)
            if offer_id == 1000:
                del self.rows[content["new_contract"]]
            return status, content

    server.__class__ = Loses
    assert rent_one(ledger).offer_id == 1001 and ledger.rentals()[0].machine_failed == "is gone"


@pytest.mark.parametrize(
    ("message", "told"),
    [("Error response from daemon: manifest unknown", r"^vast\.image=\S+ cannot be had: .*: manifest unknown$"),
     ("pulling", r"100 was still loading \(pulling\) after 0\.01 minutes")],
)  # fmt: skip
def test_what_the_service_says_of_a_machine_that_loads_is_told(message, told, server, ledger):
    class Says(VastServer):
        def _seen(self, row):
            return super()._seen(row) | {"status_msg": message}

    server.__class__ = Says
    server.stays_loading = {100}
    with pytest.raises(UserError, match=told):
        rent_one(ledger, "vast.max_tries=1")
    assert not server.rows and bool(ledger.failed_machines()) == (message == "pulling")


def test_a_machine_that_exits(server, ledger):
    server.exits = {100, 101}
    assert rent_one(ledger).machine_id == 102
    assert len(server.rows) == 1
    assert ledger.failed_machines() == {100, 101}


def test_no_machine_comes_up(server, ledger):
    server.exits = set(range(100, 110))
    with pytest.raises(UserError, match="max_tries=2, and none of them is left rented: 100 is exited; 101 is exited"):
        rent_one(ledger, "vast.max_tries=2")
    assert not server.rows


def test_a_file_that_is_no_rental_is_a_warning_and_stays_known(server, ledger, capsys):
    """It must not hinder what ends the bills of the others, nor be taken for somebody else's."""
    first, second = rent_one(ledger), rent_one(ledger)
    (ledger.folder / f"{first.label}.json").write_text('{"label": "x"}')
    assert [rental.label for rental in ledger.rentals()] == [second.label] == [each.label for each in ledger.rentals()]
    assert capsys.readouterr().err.count("is no rental of this version") == 1
    assert ledger.labels() == {first.label, second.label}


def test_what_a_rental_has_cost_includes_its_traffic(server, ledger):
    rental = rent_one(ledger, "vast.traffic=100")
    assert rental.traffic == pytest.approx(0.2) and rental.cost > 0.2
    rental.deadline = rental.asked + 3600
    rental.asked -= 7200
    assert rental.cost == pytest.approx(2 * rental.price_per_hour + 0.2, rel=1e-3)
    rental.deadline = rental.asked + 3600  # nobody knows what was done after it, but that it is billed
    assert rental.is_open and rental.cost == pytest.approx(2 * rental.price_per_hour + 0.2, rel=1e-3)
    ledger.end(rental, State.DESTROYED)
    assert rental.cost == pytest.approx(rental.price_per_hour + 0.2, rel=1e-3)
    rental.ended = rental.asked + 600
    ledger.end(rental, State.DESTROYED)  # again, to be sure
    assert rental.cost == pytest.approx(rental.price_per_hour / 6 + 0.2, rel=1e-3)


def test_failed_tries_are_paid_of_the_same_money(server, ledger):
    server.exits = {100}
    rental = rent_one(ledger, "vast.max_hours=99", "vast.traffic=0")
    failed = ledger.rentals()[0]
    hours = (rental.deadline - rental.asked) / 3600
    assert failed.cost > 0 and hours == pytest.approx((2.0 - failed.cost) / 0.32, rel=1e-5)
    assert hours < 2.0 / 0.32


def test_a_script_that_arrives_cut_off(server, ledger):
    class Cuts(VastServer):
        def _seen(self, row):
            return super()._seen(row) | ({"onstart": row["onstart"][:2000]} if row["machine_id"] == 100 else {})

    server.__class__ = Cuts
    with pytest.raises(UserError, match="cut the machine's script off"):
        rent_one(ledger)
    assert not server.rows and not ledger.failed_machines()


@pytest.mark.parametrize("answer", [(500, {}), (200, {"success": False}), "drop", "cut", "hang"])
def test_destroy_fails_at_first(answer, server, ledger):
    server.exits = {100}
    server.faults.append(Fault(DESTROY, answer, times=1 if answer == "hang" else 3))
    rental = rent_one(ledger, "vast.request_timeout=0.5")
    assert only_instance(server)["id"] == rental.instance_id
    assert len(server.sent(DESTROY)) == (2 if answer == "hang" else 4)


def test_destroy_fails_always(server, ledger):
    """The one fault that leaves a bill until the machine's own deadline: it is said, with the command that ends it."""
    server.exits = {100}
    server.faults.append(Fault(DESTROY, (200, {"success": False}), times=99))
    with pytest.raises(UserError, match=r"STILL BILLED: instance \d+ .*vast\.action=destroy"):
        rent_one(ledger)
    assert len(server.rows) == 1 and ledger.rentals()[-1].is_open
    assert len(server.sent(CREATE)) == 1  # nothing more is rented beside it


def test_a_destroy_that_is_answered_by_a_bad_key_is_not_believed(server):
    server.faults += [
        Fault(DESTROY, (404, {"error": "auth_error"}), times=99),
        Fault(r"GET /api/v0/instances/\d+/", (404, {"error": "auth_error"}), times=99),
    ]
    server.rows[1] = {"id": 1, "instance_api_key": "x"}
    assert Vast(0.01, 3).destroy(1) is False


def test_a_destroy_that_was_refused_is_not_done_because_nothing_is_seen(server):
    server.faults += [
        Fault(DESTROY, (429, {"detail": "too frequent"}), times=99),
        Fault(r"GET /api/v0/instances/\d+/", (200, {"instances": None}), times=99),
        Fault("GET /api/v1/instances/", (200, {"instances": []}), times=99),
    ]
    assert Vast(0.01, 3).destroy(1) is False
    server.faults.clear()
    assert Vast(0.01, 3).destroy(1) is True  # 404 no_such_instance


def test_a_list_of_several_pages_is_read_to_its_end(server, ledger):
    server.offers = [offer(number) for number in range(60)]
    vast = Vast(0.01, 3)
    labels = [new_label(time.time() + 60) for _ in range(55)]
    for number, label in enumerate(labels):
        vast.create(1000 + number, image="i", disk=10, label=label, onstart_cmd="", env={})
    assert sorted(row["label"] for row in vast.instances("ups-until-")) == sorted(labels)


@pytest.mark.parametrize("answer", [{"success": False}, {"success": False, "instances": None}])
def test_a_list_that_is_not_given_is_not_an_empty_one(answer, server, ledger):
    """Else one such answer would write off what is still billed, and some would rent a second machine beside it."""
    server.faults += [Fault(CREATE, (504, {}), after=True), Fault("GET /api/v1/instances/", (200, answer), times=3)]
    rental = rent_one(ledger)
    assert only_instance(server)["id"] == rental.instance_id and len(server.sent(CREATE)) == 1
    server.faults.append(Fault("GET /api/v1/instances/", (200, answer), times=5))
    with pytest.raises(UserError, match="no usable answer"):
        status(settings(), Vast(0.01, 3), ledger)
    assert [each.is_open for each in ledger.rentals()] == [True]


def test_the_stand_in_gives_no_number_twice(server):
    """A later machine with the number of one that is gone would find its disk, and believe its run saved."""
    vast, numbers = Vast(0.01, 3), []
    for _ in range(10):
        numbers.append(vast.create(1000, image="i", disk=10, label="x", onstart_cmd="", env={}))
        assert vast.destroy(numbers[-1])
    assert numbers == sorted(set(numbers))


def test_labels_are_unique():
    assert len({new_label(0.0) for _ in range(100)}) == 100


def test_secrets_are_in_the_environment_only(server, ledger):
    rent_one(ledger, job=dataclasses.replace(JOB, secrets={"WANDB_API_KEY": "wandb-secret", "GIT_TOKEN": "git-secret"}))
    secrets = ["wandb-secret", "git-secret", server.key, only_instance(server)["instance_api_key"]]
    (create,) = server.sent(CREATE)
    assert create.body.pop("env").items() >= {"WANDB_API_KEY": "wandb-secret", "GIT_TOKEN": "git-secret"}.items()
    written = [file.read_text() for file in ledger.folder.rglob("*") if file.is_file()]
    assert written
    for text in [*written, *(repr(request.body) for request in server.requests)]:
        assert not any(secret in text for secret in secrets)
