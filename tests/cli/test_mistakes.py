"""A user's mistakes: one line on stderr and exit status 2 before work starts, as docs/guide lists them.

The table is `tests.support.mistakes`; `python -m tests.support.error_messages` writes the page.
"""

from pathlib import Path

import pytest

from tests.support.error_messages import PAGE, format_entry, prepare_files, run_mistake
from tests.support.mistakes import AE, SECTIONS, Mistake

MISTAKES = [mistake for mistakes in SECTIONS.values() for mistake in mistakes]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("files")
    prepare_files(root)
    return root


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_a_mistake_is_one_line_before_any_work(files, tmp_path, mistake):
    run = tmp_path / "runs" / "run"
    run.parent.mkdir()
    status, err = run_mistake(mistake, files, run)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    for phrase in mistake.phrases:
        assert phrase.replace("{files}", str(files)).replace("{run}", str(run)) in err
    written = {path.name for path in run.glob("*")}
    assert written <= ({"train.sbatch", "config.yaml"} if not mistake.locked else set()), "no training began"
    entry = format_entry(mistake, err, files, run)
    assert entry in PAGE.read_text(), "run `python -m tests.support.error_messages` and commit the page"


def test_the_page_lists_every_mistake_once():
    titles = [line.strip("*") for line in PAGE.read_text().splitlines() if line.startswith("**")]
    assert titles == [mistake.title for mistake in MISTAKES] and len(set(titles)) == len(titles)


def test_fewer_checkpoints_are_only_advised_where_that_helps(files, tmp_path):
    words = [*AE, "callbacks.checkpoint.keep=2"]
    status, err = run_mistake(Mistake("a full disk", words, [], free_bytes=10**5), files, tmp_path / "run")
    assert status == 2 and f"{tmp_path} has 0.0 GB free: " in err and err.endswith("run=FOLDER\n")
    assert not (tmp_path / "run").exists()
