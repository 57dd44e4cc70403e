"""The page in a real browser, from a file and without a network. Skipped where no Chromium is installed."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from pathlib import Path

import pytest
from record_factory import full_records, make_record, make_score
from test_report import EVIL, crowd, demonstration

from varbench import record as r
from varbench.record.sections import Panel
from varbench.show import Chart, Section, Text
from varbench.show.outputs import render

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install varbench[test]")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
AXE = Path(__file__).parent / "data" / "axe-4.14.1.min.js"  # axe-core, Deque Systems, MPL-2.0

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no Chromium here: install the packages chromium and chromium-driver",
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=1280,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with everything on it: invalid rows, studies, a panel, a second block, hostile strings."""
    own_sampler = dataclasses.replace(make_record().protocol, top_k=600)
    evil = make_record(
        f"{EVIL}@d4", seconds=0.45, quality=7.0, metrics={f"p.{EVIL}": make_score(EVIL, 1.0, 0.1, n=20)}, command=EVIL
    )
    evil = dataclasses.replace(evil, warnings=(r.Notice(text=EVIL, next_command=EVIL),))
    found = [*demonstration(), evil, dataclasses.replace(make_record("code@n6"), protocol=own_sampler)]
    bars = {"data": {"values": [{"a": EVIL, "b": 1}]}, "mark": "bar"}
    bars["encoding"] = {"x": {"field": "b", "type": "quantitative"}, "y": {"field": "a", "type": "nominal"}}
    mine = Section(title=f"My panel {EVIL}", parts=[Text(text=EVIL), Chart(spec=bars, alt="bars")])
    return render(
        found, tmp_path_factory.mktemp("report"), panels=[Panel(source="a plugin", section=mine)], problems=[EVIL]
    )


@pytest.fixture
def page(browser, report):
    open_page(browser, report)
    return browser


def open_page(browser, path, *, width=1280, dark=False):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
    browser.get_log("browser")
    browser.get(path.as_uri())


def draw_all(browser):
    """Every chart becomes live: each is brought near, as by a reader who goes through the page."""
    browser.execute_async_script("""
        const done = arguments[0], places = [...document.querySelectorAll("[data-chart]")];
        const started = performance.now();
        const wait = () => {
          const open = places.filter((place) => !["yes", "failed"].includes(place.dataset.drawn));
          if (!open.length || performance.now() - started > 50000) { scrollTo(0, 0); done(); return; }
          open[0].scrollIntoView();
          setTimeout(wait, 50);
        };
        wait();
    """)


def serious(browser):
    """What axe finds that keeps people out."""
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run(document).then(arguments[0])")
    return [
        f"{rule['id']}: {node['html'][:160]} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:3]
    ]


def names(browser):
    return browser.execute_script(
        "return [...document.querySelector('table.sortable').tBodies[0].rows].filter((row) => !row.hidden)"
        ".map((row) => row.cells[0].dataset.sort)"
    )


def column(browser, heading):
    """The values of the first table's column, from the top, a dash for a missing one."""
    return browser.execute_script(
        """const table = document.querySelector('table.sortable');
        const index = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim() === arguments[0]);
        return [...table.tBodies[0].rows].map((row) => row.cells[index].dataset.sort ?? '-')""",
        heading,
    )


def test_it_opens_offline_draws_every_figure_and_complains_of_nothing(page):
    draw_all(page)
    marks = page.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].map((place) => [place.dataset.chart, place.dataset.drawn,"
        "place.querySelectorAll('.live svg :is(.mark-rect path, .mark-symbol path, .mark-line path, .mark-rule line,"
        ".mark-bar path)').length, place.getBoundingClientRect().width])"
    )
    assert len(marks) > 25
    for chart, drawn, count, width in marks:
        assert drawn == "yes", chart
        assert count > 0, f"{chart} is empty"
        assert width > 150, chart
    assert page.get_log("browser") == []
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_without_scripts_every_figure_is_there_with_its_caption(browser, report):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, report)
        places = browser.find_elements("css selector", "[data-chart]")
        assert len(places) > 25
        for place in places:
            (picture,) = place.find_elements("css selector", "svg")
            assert picture.is_displayed()
            size, room = picture.size, place.size
            assert size["width"] > 150 and size["height"] > 60
            assert size["width"] <= room["width"] + 1 and size["height"] <= room["height"] + 1
        figures = browser.find_elements("css selector", "figure:not(.grid)")
        assert len(figures) > 10
        for figure in figures:
            assert len(figure.find_element("css selector", "figcaption").text) > 20
        assert not browser.find_element("id", "filter").is_displayed()  # what does nothing is not shown
        body = browser.find_element("css selector", "body").text
        assert "opens its record" not in body and "need JavaScript" in body
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_names_of_points_do_not_overlap_as_they_are_drawn(browser, tmp_path, width):
    """With the letters that the browser really has, live and still."""
    page = render(crowd(12), tmp_path)
    open_page(browser, page, width=width)
    draw_all(browser)
    for kind in ("live", "still"):
        texts = browser.execute_script(
            "document.querySelectorAll('.still').forEach((one) => { one.style.display = 'block'; });"
            "return [...document.querySelectorAll(`#quality-speed .${arguments[0]} text, #quality-memory .${arguments[0]} text`)]"
            ".filter((text) => /full_var|crowded/.test(text.textContent))"
            ".map((text) => { const { left, right, top, bottom } = text.getBoundingClientRect(); "
            "return [text.closest('[data-chart]').dataset.chart, left, right, top + 2, bottom - 2]; })",
            kind,
        )
        assert len(texts) > 3
        for one, other in itertools.combinations(texts, 2):
            beside = one[2] <= other[1] or other[2] <= one[1] or one[4] <= other[3] or other[4] <= one[3]
            assert one[0] != other[0] or beside, (kind, one, other)


def test_a_chart_that_cannot_become_live_stays_as_it_was(browser, report):
    open_page(browser, report)
    browser.execute_script("window.vegaEmbed = async () => { throw new Error('no'); }; scrollTo(0, 0)")
    draw_all(browser)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('[data-drawn=failed]')].map((place) => place.querySelector('svg').getBoundingClientRect().height)"
    )
    assert len(shown) > 10
    assert min(shown) > 60


def test_sorting_by_number_keeps_missing_values_last(page):
    head = "[...document.querySelectorAll('table.sortable')[0].tHead.rows[0].cells].find((c) => c.textContent === 'speedup')"
    page.execute_script(f"{head}.querySelector('button').click()")
    up = column(page, "speedup")
    page.execute_script(f"{head}.querySelector('button').click()")
    down = column(page, "speedup")
    assert up[-1] == down[-1] == "-"
    assert [float(value) for value in up[:-1]] == sorted(float(value) for value in up[:-1])
    assert down[:-1] == sorted(up[:-1], key=float, reverse=True)
    assert up[0] != up[-2]
    assert page.execute_script(f"return {head}.getAttribute('aria-sort')") == "descending"


def test_filters_by_words_and_validity(page):
    everything = names(page)
    box = page.find_element("id", "filter")
    box.send_keys("variant d2")
    assert names(page) == ["variant@d2"]
    assert re.match(r"1 of \d+ rows", page.find_element("id", "count").text)
    box.clear()
    box.send_keys("x\b")
    assert names(page) == everything
    validity = page.find_element("id", "validity")
    validity.send_keys("not valid")
    assert set(names(page)) == {"leaky", "hangs"}


def test_a_row_opens_its_record_plan_and_command_by_keyboard(page):
    button = page.find_element("css selector", "th[data-sort='variant@d8'] button")
    button.send_keys("\n")
    dialog = page.find_element("id", "row")
    assert dialog.get_attribute("open")
    assert "varbench run --plugins variant@d8" in dialog.text
    assert "0 2 4 6 8 10 12 15" in dialog.text  # the layers of the last scales
    page.execute_script("document.querySelector('#row details').open = true")
    record = page.execute_async_script(
        "setTimeout(() => arguments[0](JSON.parse(document.querySelector('#row details pre').textContent)), 200)"
    )
    assert record["row"]["row"] == "variant@d8"
    assert record["environment"]["cpu"] == "Example CPU"
    assert len(record["plan"]["steps"]) == 6
    assert len(record["timing"]["columns"][0]["rounds"]) == 3
    assert serious(page) == []
    page.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert not dialog.get_attribute("open")


def test_a_row_that_failed_opens_with_its_reason(page):
    page.execute_script("document.querySelector(\"th[data-sort='hangs'] button\").click()")
    text = page.find_element("id", "row").text
    assert "timeout: the child did not finish" in text
    assert "Missing, and why" in text


def test_the_difference_view_covers_the_grids_that_can_be_compared(page):
    page.execute_script("document.querySelector('.differences').click()")
    modes = page.execute_script(
        "return [...document.querySelectorAll('.grids')[0].querySelectorAll('img')].map((i) => getComputedStyle(i).mixBlendMode)"
    )
    assert modes[0] == "normal"
    assert set(modes[1:]) == {"difference"}


def test_strangers_strings_do_nothing(page):
    draw_all(page)
    assert page.execute_script("return document.querySelectorAll('img[src=\"x\"], td script, p script').length") == 0
    page.execute_script(
        "[...document.querySelectorAll('[data-entry]')].find((b) => b.textContent.includes('alert')).click()"
    )
    assert EVIL in page.find_element("id", "row").text
    assert page.execute_script("return document.querySelectorAll('#row script, #row img').length") == 0
    page.execute_script("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.ran = 2'; document.body.append(s)"
    )
    assert page.execute_script("return window.ran ?? null") is None  # the policy would stop even what is not escaped


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_nothing_keeps_people_out(browser, report, width, dark):
    open_page(browser, report, width=width, dark=dark)
    draw_all(browser)
    assert serious(browser) == []
    wide = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], "the page scrolls sideways"


def test_the_theme_and_print_change_what_is_seen(browser, report):
    def background():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    open_page(browser, report, dark=False)
    light = background()
    open_page(browser, report, dark=True)
    assert background() != light
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert background() == light
    assert browser.execute_script("return getComputedStyle(document.querySelector('.tools')).display") == "none"
    printed = browser.execute_script(
        "return [...document.querySelectorAll('[data-chart]')].map((place) => [...place.querySelectorAll('svg')]"
        ".filter((svg) => svg.getBoundingClientRect().height > 60).length)"
    )
    assert set(printed) == {1}, "each figure is printed once, live or not"


@pytest.mark.slow
def test_the_smallest_and_the_index_pages_work(browser, tmp_path):
    for number, found in enumerate(([make_record(status=r.Status.CRASHED)], full_records()[:1], full_records())):
        page = render([dataclasses.replace(record, run=f"run{number}") for record in found], tmp_path)
        open_page(browser, page)
        draw_all(browser)
        assert serious(browser) == []
        assert browser.get_log("browser") == []
    open_page(browser, tmp_path / "index.html")
    assert serious(browser) == []
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", "tbody tr")) == 3
    browser.find_element("link text", "run2").click()
    assert "varbench" in browser.title
