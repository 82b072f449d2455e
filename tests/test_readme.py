"""Every command in a block of bash of the README and docs/ runs: trainings at smoke size, the rest as it stands."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, clean_environment, foreign

from benchmarks import accuracy, several_nu, stages
from benchmarks.trainings import significant
from ups.config.check import check
from ups.config.compose import composed
from ups.evaluation.bootstrap import paired_ratio
from ups.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("readme")]  # in order: a reader types one after the other

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)]
COMMANDS = [
    part.strip()
    for block in BLOCKS for line in block.splitlines() for part in line.split("#")[0].split("&&") if part.strip()
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader has already typed the commands above."""
    return tmp_path_factory.mktemp("reader")


def run(arguments, folder, place=None):
    """In `place`, or else in the reader's folder, which is their home too."""
    environment = clean_environment(folder)
    return subprocess.run(arguments, cwd=place or folder, env=environment, capture_output=True, text=True, timeout=200)


def test_one_worker_has_all_of_this_file(request):
    assert request.node.nodeid.endswith("@readme") or "PYTEST_XDIST_WORKER" not in os.environ


def test_the_readme_has_its_two_commands():
    assert "pip install -r requirements.txt && python train.py" in BLOCKS[0]
    assert "pip install -r requirements.txt && python -m pytest" in BLOCKS[1]


def test_every_commit_that_a_page_names_exists():
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("a shallow clone, or no clone: it does not have the commits to look up")
    text = "".join(page.read_text() for page in PAGES)
    hashes = set(re.findall(r"commits? (?:before |after )?([0-9a-f]{7})\b", text))
    assert len(hashes) > 3 and not [each for each in hashes if git("cat-file", "-t", each) != "commit"]


def test_every_test_that_a_page_names_exists():
    names = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    sources = "".join(file.read_text() for file in (ROOT / "tests").glob("*.py"))
    assert len(names) > 40 and not [name for name in names if f"def {name}(" not in sources]


def test_every_test_that_the_table_of_launching_names_exists():
    """There by a part of its name, after the letter of its file."""
    page = (ROOT / "docs" / "launching.md").read_text()
    cells = [line.split("|")[-2] for line in page.splitlines() if line.startswith("| ")]
    files = {"P": "provision", "I": "instance", "L": "launch", "A": "artifacts"}
    named = [(letter, part) for cell in cells for letter, parts in re.findall(r"([PILA])((?: `\w+`,?)+)", cell)
             for part in re.findall(r"\w+", parts)]  # fmt: skip
    tests = {letter: re.findall(r"def (test_\w+)", (ROOT / "tests" / f"test_{name}.py").read_text())
             for letter, name in files.items()}  # fmt: skip
    assert len(named) > 40
    assert not [(letter, part) for letter, part in named if not any(part in test for test in tests[letter])]


def test_the_errors_in_the_readme_are_those_of_the_report():
    predictors = json.loads((ROOT / "docs" / "accuracy" / "nu0.001.json").read_text())["predictors"]
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    names = {
        "neuraloperator_fno": "the `neuraloperator` package's FNO", "neuraloperator_fno by AdamW": "the same by AdamW",
        "dilresnet by AdamW": "`dilresnet` by AdamW",
    } | {
        name: f"`{name}`" for name in ("solver_in_the_loop", "dilresnet", "unet", "fno", "latent_operator")
    }
    classical = ("finite volumes, 256 points", "finite volumes, 1024 points", "spectral, 256 points")
    names |= {name: name for name in ("persistence", *classical, "Cole-Hopf step, untrained")}
    for name, title in names.items():
        scores = predictors[name]
        cells = [f"{scores[test]['nrmse']:.1e}".replace("e-0", "e-") for test in ("generated", "pdebench")]
        versus = [significant(scores["generated"]["versus_peer"][each]) for each in ("ratio", "low", "high")]
        cells.append("1" if name == "neuraloperator_fno" else "{} [{}, {}]".format(*versus))
        cells.append("" if name == "persistence" else significant(scores["milliseconds"]))
        assert [row for row in rows if row.startswith(f"| {title}") and row.endswith(f"| {' | '.join(cells)} |")], cells


def test_the_sentence_on_another_nu_is_that_of_the_report():
    predictors = json.loads((ROOT / "docs" / "accuracy" / "nu0.01.json").read_text())["predictors"]
    text = " ".join((ROOT / "README.md").read_text().split())
    error = lambda name, test: f"{predictors[name][test]['nrmse']:.1e}".replace("e-0", "e-")
    names = ("dilresnet", "solver_in_the_loop", "spectral, 256 points")
    generated, published = ([error(name, test) for name in names] for test in ("generated", "pdebench"))
    sentence = (
        f"At nu 0.01 `dilresnet` has {generated[0]} and `solver_in_the_loop` {generated[1]} on the generated "
        f"trajectories, where a spectral solver has {generated[2]} in less time"
    )
    assert len(set(published)) == 1 and f"On PDEBench's own, all three have {published[0]};" in text
    assert sentence in text


@pytest.mark.parametrize(("page", "folder", "least"), [("accuracy.md", "accuracy", 3), ("stages.md", "stages", 3)])
def test_the_tables_of_a_page_are_the_reports(page, folder, least):
    text = (ROOT / "docs" / page).read_text()
    reports = sorted((ROOT / "docs" / folder).glob("*.md"))
    assert len(reports) >= least and not [report.name for report in reports if report.read_text().strip() not in text]


@pytest.mark.parametrize(
    "file",
    ["accuracy/nu0.001", "accuracy/nu0.01", "accuracy/several_nu", "stages/points256", "stages/points64",
     "stages/points256_shares_20_2_20"],
)  # fmt: skip
def test_a_reports_table_is_made_of_its_figures(file):
    report = ROOT / "docs" / file
    table = {"accuracy": accuracy.table, "stages": stages.table}[report.parent.name]
    table = several_nu.table if report.name == "several_nu" else table
    assert table(read_json(Path(f"{report}.json"))) == Path(f"{report}.md").read_text()


def test_the_sentences_on_stage_3_are_those_of_the_reports():
    text = " ".join((ROOT / "README.md").read_text().split())
    full, fine = "operator, full time", {}
    for points in (256, 64):
        rows = read_json(ROOT / "docs" / "stages" / f"points{points}.json")["rows"]
        student, dressed = rows["student (stage 3), 1 evaluation"], rows[f"{full}, dressed with its errors"]
        tuned = rows["operator fine-tuned on rollouts, full time"]
        fine[points] = student[f"versus {full}"] | {
            "dressed": paired_ratio(student["crps_per_trajectory"], dressed["crps_per_trajectory"]),
            "tuned": paired_ratio(student["nrmse_per_trajectory"], tuned["nrmse_per_trajectory"]),
        }
    below = lambda ratio: f"{100 * (1 - ratio):.0f}"
    versus = fine[256]
    seeds, (ratio, low, high) = sorted(versus["crps_of_seeds"]), versus["dressed"]
    told = lambda versus: "{:.2f} [{:.2f}, {:.2f}]".format(*versus)
    assert (
        f"is {below(versus['crps'][0])} % below the error of the operator that was trained for the whole time "
        f"({below(seeds[-1])} to {below(seeds[0])} % in the three seeds) and {below(ratio)} % below that of the "
        f"dressed operator [{below(high)}, {below(low)}]; the nRMSE of its mean is {told(versus['nrmse'])} of that "
        f"operator's and {told(versus['tuned'])} of that of the operator fine-tuned on rollouts"
    ) in text
    crps, dressed = (told(fine[64][each]) for each in ("crps", "dressed"))
    assert f"its CRPS is {crps} of the full-time operator's error and {dressed} of the dressed operator's CRPS" in text


def test_the_stages_in_the_readme_are_those_of_the_report():
    rows = json.loads((ROOT / "docs" / "stages" / "points256.json").read_text())["rows"]
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    for title, row in rows.items():
        if "evaluation" in title and title != "student (stage 3), 1 evaluation":
            continue
        versus, stochastic = row["versus operator, full time"], "spread_skill" in row
        ratio, low, high = versus["crps"]
        cells = [title, f"{row['nrmse']:.1e}", f"{row['nrmse_one_member']:.1e}" if stochastic else ""]
        cells += [f"{row['crps']:.1e}", f"{ratio:.2f} [{low:.2f}, {high:.2f}]"]
        cells.append(" ".join(f"{each:.2f}" for each in versus["crps_of_seeds"]))
        cells.append(f"{row['coverage_50']:.0%}, {row['coverage_90']:.0%}" if stochastic else "")
        cells.append(significant(row["milliseconds"]))
        assert "| " + " | ".join(cells).replace("e-0", "e-") + " |" in lines, cells


def with_digests(text: str, folder) -> str:
    """Those of the newest stages in the reader's store."""
    if not (folder / "store").exists():
        pytest.skip("of stages that the page's trainings leave, which come before it in this file: it runs alone here")
    newest = lambda stage: max(folder.glob(f"store/{stage}-*/"), key=lambda path: path.stat().st_mtime)
    return re.sub(r"store/(\w+)-DIGEST", lambda match: str(newest(match[1])), text)


@pytest.mark.parametrize("command", sorted(set(COMMANDS), key=COMMANDS.index))
def test_command(command, folder, cache):
    words = shlex.split(command)
    if command == "pip install -r requirements.txt":
        # .ci/run did it in a fresh environment; here: what it asks for is what is installed.
        assert run([sys.executable, "-m", "pip", "check"], folder).returncode == 0
        assert run([sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-index",
                    "-r", str(ROOT / "requirements.txt")], folder).returncode == 0  # fmt: skip
        return
    if words[:3] == ["python", "-m", "pytest"]:
        # This very suite: that it finds what it should, in a file that has some of it.
        file = "tests/test_soak.py" if "soak" in words else "tests/test_config.py"
        answer = run([sys.executable, *words[1:], "--collect-only", file], folder, place=ROOT)
        assert answer.returncode == 0 and f"{file}::" in answer.stdout, answer.stdout[-2000:]
        assert ("::test_answers_at_once" in answer.stdout) == (len(words) == 3)  # a slow one
        return
    launcher = []
    if words[0] == "torchrun":
        script = words.index("train.py")
        launcher = ["-m", "torch.distributed.run", "--standalone", *words[1:script]]  # on a port that is free
        words = ["python", *words[script:]]
    if words[:2] == ["python", "train.py"]:
        # Not `stage.validations`: that would be of the command's own stage, and so make another operator.
        small = [value for value in SMALL if not value.startswith("stage.") and value not in words]
        if "dataset=pdebench_burgers" in words:
            data = foreign("1D_Burgers_Sols_Nu0.001_n16.hdf5")
            words = [f"dataset.path={data}" if word.startswith("dataset.path=") else word for word in words]
            small = ["budget.operator=4", "stage.validations=1", "dataset.test=4", "dataset.validation=4"]
        arguments = [sys.executable, *launcher, str(ROOT / "train.py"), *words[2:], *small, f"cache={cache}"]
    elif words[:2] == ["python", "evaluate.py"]:
        words = [with_digests(word, folder) for word in words]
        if "dataset=pdebench_burgers" in words:
            data = foreign("1D_Burgers_Sols_Nu0.001_n16.hdf5")
            words = [f"dataset.path={data}" if word.startswith("dataset.path=") else word for word in words]
        few = ["dataset.test=2", "dataset.solver_points=256"] if "dataset=burgers" in words else []
        arguments = [sys.executable, str(ROOT / "evaluate.py"), *words[2:], *few, "runtime.threads=1"]
    elif words[:2] == ["python", "launch_vast.py"]:
        # test_launch.py rents and rehearses with these; here: the config composes and is valid.
        overrides = [word.split(",")[0].replace("=ID", "=1") for word in words[2:] if word != "-m"]
        check(composed("launch", overrides), "launch")
        return
    elif words[:3] == ["python", "-m", "ups.runs.replay"]:
        # test_commands.py repeats a step with it; here: that there is such a command.
        assert run([sys.executable, *words[1:3], "--help"], ROOT).returncode == 0
        return
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        # Minutes to hours: here, that it takes these words.
        options = [word for word in words if word.startswith("--")]
        answer = run([sys.executable, str(ROOT / words[1]), "--help"], folder)
        assert answer.returncode == 0 and all(option in answer.stdout for option in options)
        return
    elif command == "pip install -r benchmarks/requirements.txt":
        assert (ROOT / words[-1]).read_text().startswith("neuraloperator==")
        return
    elif words[0] == "wandb":
        # The viewer needs a terminal and `sync` a server: that the client has them, and that the files are there.
        assert run([sys.executable, "-m", "wandb", words[1], "--help"], folder).returncode == 0
        assert list(folder.glob(words[2].replace("DATE/TIME", "*/*")))
        return
    else:
        raise AssertionError(f"no test knows the README's command: {command}")
    answer = run(arguments, folder)
    assert answer.returncode == 0, answer.stderr[-3000:]
    later = r"python train\.py (-m )?stage=\S*(diffusion_residual|consistency_distill)( experiment=smoke)?"
    if re.fullmatch(later, " ".join(words)):
        assert "found   operator-" in answer.stderr  # that of the page's first command


def test_the_lines_of_python_run(folder):
    """In each of the three stages' place, once the commands above have trained them."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    for stage in ("operator", "diffusion_residual", "consistency_distill"):
        block = block.replace("range(31)", "range(1)")  # after six steps of training a rollout diverges
        code = with_digests(block.replace("store/operator", f"store/{stage}"), folder)
        setup = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
        check = "assert u.shape == (1, 256) and u.isfinite().all()"
        answer = run([sys.executable, "-c", f"{setup}\n{code}\n{check}"], folder)
        assert answer.returncode == 0, answer.stderr
