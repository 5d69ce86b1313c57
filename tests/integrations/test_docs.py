"""The guide: its examples run, its links lead somewhere, and it leaves nothing public out."""

import doctest
import inspect
import re
from pathlib import Path

import pytest

import fastce
from fastce._runtime import config

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
OWN_WORDS = re.compile(
    r"\b(house|trips?|crew|told|reckoned|by heart|(by|takes?|taking) turns|(is|are) not to be had|"
    r"(row|class|mistake|term|digit)s? costs?|the same under other names)\b",
    flags=re.IGNORECASE,
)
PAGES = sorted(
    p for p in DOCS.rglob("*.md") if "_build" not in p.parts and "generated" not in p.parts
)


@pytest.mark.parametrize("page", ["index", "guide/quickstart", "guide/cookbook"])
def test_examples_run(page):
    text = re.sub("^```.*$", "", (DOCS / f"{page}.md").read_text(), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, page, page, 0)
    assert len(test.examples) > 5
    shown = []
    failed, _ = doctest.DocTestRunner().run(test, out=shown.append)
    assert not failed, "".join(shown)


@pytest.mark.parametrize("page", [*PAGES, README], ids=lambda p: p.name)
def test_links(page):
    text = re.sub("^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if target.startswith("http"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall("^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            anchors = {
                re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads
            }
            assert anchor in anchors, f"{page.name}: {target}#{anchor}"


def contents(page):
    """The pages in the toctrees of this one."""
    blocks = re.findall("```{toctree}(.*?)```", page.read_text(), flags=re.DOTALL)
    names = re.findall(r"^(?!:)([\w/]+)$", "".join(blocks), flags=re.MULTILINE)
    return [page.parent / f"{name}.md" for name in names]


def test_each_page_is_in_the_contents():
    """Of a section: the sidebar of a page that the index itself names is empty."""
    index = DOCS / "index.md"
    assert sorted(page for parent in PAGES for page in contents(parent)) == sorted(
        set(PAGES) - {index}
    )
    assert {page.parent.name for page in contents(index)} == {
        "guide", "api", "examples", "docs", "development",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_lines_of_code_fit_the_page(page):
    """See `docs/_static/wide.css`; the code of vendoring.md is that of its examples."""
    limit = 100 if page.name == "vendoring.md" else 90
    for block in re.findall("^```\\w+\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        assert max(map(len, block.splitlines()), default=0) <= limit, block


@pytest.mark.parametrize(
    "page", [*PAGES, README, DOCS.parent / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_words(page):
    """Words with meanings of our own, for which there are standard ones, do not come back."""
    text = re.sub("^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not OWN_WORDS.search(re.sub("`[^`]*`", "", text))


def test_each_function_is_in_the_api():
    listed = set(
        re.findall(r"^   (\w+)$", (DOCS / "api" / "index.md").read_text(), flags=re.MULTILINE)
    )
    public = {name for name in fastce.__all__ if not name.startswith("__")} - {"information"}
    assert public | set(fastce.information.__all__) <= listed


def test_each_variable_is_on_its_page():
    page = (DOCS / "guide" / "environment.md").read_text()
    assert set(re.findall("^[|] `(\\w+)` [|]", page, flags=re.MULTILINE)) > set(config._SHOWN)


def test_functions_inside_njit_are_named():
    """README and the guide name all functions that compiled code can call, and no other."""
    numba = pytest.importorskip("numba", reason="Numba is not installed")
    from numba.core.registry import cpu_target

    from fastce import _jit

    _jit.register()
    context = cpu_target.typing_context
    context.refresh()

    def is_there(name):
        function = getattr(fastce, name)
        try:
            return inspect.isfunction(function) and context.resolve_value_type(function)
        except (ValueError, numba.TypingError):
            return False

    there = set(filter(is_there, fastce.__all__))
    readme = README.read_text()
    guide = (DOCS / "guide" / "vendoring.md").read_text()
    pages = [
        readme[readme.index("inside Numba's `@njit`") : readme.index("([vendoring]")],
        guide[guide.index("Compiled functions call ") : guide.index("by these names")],
    ]
    for page in pages:
        named = re.findall(r"`(?:fastce\.)?(\w+)`", page)
        assert set(named) - {"fastce"} == there


def test_tables_and_pictures_of_speed_are_those_of_the_measurements():
    """`python -m bench.peers.report` makes them; README has all cases in which fastce is slower."""
    from bench.peers import report

    for file, tables in report.tables().items():
        assert report.with_tables(file.read_text(), tables) == file.read_text(), file
    for case, medians in report.cases_of("zen4").items():
        if any(ratio < 1 for name, ratio in report.ratios(medians).items() if name != "limit"):
            assert case in report.ROWS
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    assert {file.stem for file in (DOCS / "speed").iterdir()} == set(report.PAGES)
    shown = []
    for name in report.PAGES:
        machine, cases = report.page(name)
        with image.open(DOCS / "speed" / f"{name}.png") as picture:
            assert picture.text["Source"] == report.digest(machine, cases), name
        shown += cases
    assert sorted(shown) == sorted([*report.cases_of("zen4"), *report.cases_of("zen3")])
