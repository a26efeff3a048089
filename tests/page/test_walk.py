"""The page as people without a mouse, with a phone, or with a screen reader meet it, in a real browser."""

from collections.abc import Iterator
from typing import Any

import pytest
from fixtures.gallery import write_video
from fixtures.page_server import CAN_BROWSE, PATIENCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not CAN_BROWSE, reason="needs a browser: apt-get install chromium, and pip install playwright"),
]
TABS = ("Search", "Opposites", "Ask", "Look inside")


@pytest.fixture
def visit(browser, address) -> Iterator[Any]:
    """Opens the page with a session of its own: `visit(width, scheme, ...)`."""
    contexts = []

    def visit(width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        size = {"width": width, "height": 844 if width < 500 else 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}/?__theme={scheme}", wait_until="commit", timeout=PATIENCE)
        page.wait_for_selector(".pick")
        return page

    yield visit
    for context in contexts:
        context.close()


def _fill(page: Any, tab: str) -> None:
    """Open a tab and let it show results."""
    page.click(f"role=tab[name='{tab}']")
    if tab == "Search":
        page.click(".chip:has-text('the tiger grows')")
        page.wait_for_selector(".card.best:has-text('tiger growing')")
    elif tab == "Opposites":
        page.wait_for_selector(".versus")
    elif tab == "Ask":
        page.click(".chip:has-text('what does the bell do?')")
        page.wait_for_selector(".bars:visible")
    else:
        page.click(".chip:has-text('the balloon sways')")
        page.wait_for_selector(".words")
        page.click("text=Name every region")
        page.wait_for_selector(".layer.on svg")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_tab(visit, scheme) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, axe = visit(1280, scheme), Axe()
    for tab in TABS:
        _fill(page, tab)
        page.wait_for_function("() => !document.querySelector('.pending')")  # what is being computed is faint
        page.evaluate("document.querySelectorAll('video').forEach((video) => video.pause())")  # they cost a core
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(600)  # colours fade in
            where = None if tab == TABS[0] else ".main"  # what is around the tabs is the same for all
            found = axe.run(page, where).response["violations"]
            said = [
                (one["id"], one["impact"], node["target"], node["failureSummary"])
                for one in found
                if one["impact"] in ("serious", "critical")
                for node in one["nodes"]
            ]
            assert said == [], f"{tab} at {width}, {scheme}"


def test_with_the_keyboard_alone(visit) -> None:
    page = visit()
    stops = []  # the way to "Add your own clips" is short, although there are 24 clips before it
    while not stops or "Add your own" not in stops[-1]:
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.innerText"))
        assert len(stops) <= 8, stops
    page.focus(".pick.chosen")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.id") == "04"  # two columns
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert float(ring.removesuffix("px")) >= 2
    page.keyboard.press("Enter")
    page.wait_for_selector(".pick.chosen[data-id='04']")
    assert page.locator(".pick[tabindex='0']").count() == 1
    page.focus("role=tab[name='Opposites']")
    page.keyboard.press("Enter")
    page.wait_for_selector(".versus")
    before = page.inner_text(".duel")
    page.focus("label:has-text('Its opposite') textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("the hedgehog sways")
    page.wait_for_function("text => document.querySelector('.duel')?.innerText !== text", arg=before)
    page.focus("role=tab[name='Look inside']")
    page.keyboard.press("Enter")
    page.wait_for_selector(".drawing .box")
    page.focus(".drawing")
    place = "() => document.querySelector('.drawing .box').style.cssText"
    first = page.evaluate(place)
    page.keyboard.press("ArrowLeft")
    moved = page.evaluate(place)
    page.keyboard.press("Shift+ArrowDown")
    assert len({first, moved, page.evaluate(place)}) == 3


def test_on_a_phone(visit) -> None:
    page = visit(390, has_touch=True, is_mobile=True)
    assert page.locator("role=tab[name='Search']").bounding_box()["y"] < 400
    for tab in TABS:
        _fill(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, textarea, [role=tab]")].filter((one) => {
              const area = one.getBoundingClientRect();
              const inside = one.closest("[role=tabpanel], [role=tablist]");
              return inside && one.checkVisibility() && area.height && area.height < 44;
            }).map((one) => `${one.className}: ${one.innerText}`)"""
        )
        assert small == [], tab
        sizes = "all => all.map((one) => parseFloat(getComputedStyle(one).fontSize))"
        assert min(page.locator("textarea").evaluate_all(sizes)) >= 16
    page.click("role=tab[name='Search']")
    page.evaluate("scrollTo(0, 0)")
    assert page.locator(".card").first.bounding_box()["y"] < 750  # of 844
    assert page.evaluate("document.documentElement.scrollHeight") < 2000


def test_a_finger_may_scroll_over_frames_and_a_tap_makes_a_box(visit) -> None:
    page = visit(390, has_touch=True, is_mobile=True)
    page.click("role=tab[name='Look inside']")
    frame = page.locator(".drawing .frame").first
    frame.scroll_into_view_if_needed()
    place = "() => document.querySelector('.drawing .box').style.cssText"
    before, height = page.evaluate(place), page.evaluate("scrollY")
    area = frame.bounding_box()
    finger = page.context.new_cdp_session(page)
    x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
    for kind, down in [("touchStart", 0), *[("touchMove", 12 * i) for i in range(1, 11)], ("touchEnd", None)]:
        points = [] if down is None else [{"x": x, "y": y + down}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.wait_for_function("height => scrollY < height - 60", arg=height)
    assert page.evaluate(place) == before  # a finger that moves makes no box
    area = frame.bounding_box()
    page.touchscreen.tap(area["x"] + 0.9 * area["width"], area["y"] + 0.9 * area["height"])
    page.wait_for_function("() => document.querySelector('.drawing .box').style.left === '50%'")


def test_an_address_leads_to_a_duel(visit, address) -> None:
    page = visit()
    # The clip is scored with the captions of the address, also when its choice is noticed: scores for those that the
    # page opened with might come last.
    with page.expect_request(lambda request: '"data":["14","the ' in (request.post_data or "")) as scored:
        page.goto(f"{address}/?tab=duel&clip=14&q=the+tiger+grows+%7C+the+tiger+spins+clockwise")
    assert '["14","the tiger grows","the tiger spins clockwise",' in scored.value.post_data
    page.wait_for_selector(".duel .names:has-text('the tiger spins clockwise')")
    assert page.locator("label:has-text('Its opposite') textarea").input_value() == "the tiger spins clockwise"
    assert page.locator(".stage:visible figcaption").inner_text() == "tiger growing"


def test_two_visitors_at_once(visit, tmp_path) -> None:
    one, other = visit(), visit()
    file = write_video(tmp_path / "holiday.mp4", seed=7, frames=12, size=64)
    one.set_input_files("input[type=file] >> nth=0", str(file))
    for page in (one, other):
        page.click("role=tab[name='Opposites']")
    one.wait_for_selector(".pick.chosen:has-text('holiday')")
    other.click(".kind:has-text('growing')")
    other.wait_for_selector(".duel .verdict:has-text('the tiger grows')")
    one.click("role=tab[name='Opposites']")
    one.wait_for_selector(".versus")
    assert one.locator(".stage:visible figcaption").inner_text() == "holiday"
    assert other.locator(".stage:visible figcaption").inner_text() == "tiger growing"
    assert other.locator(".pick:has-text('holiday')").count() == 0
