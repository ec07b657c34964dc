"""What a person does with the dashboard, done in a real browser."""

import contextlib
import json
import os
import pathlib
import re

from playwright.sync_api import expect, sync_playwright

from rig import SECRET, TOKEN, Application, Hookward, eventually

HERE = pathlib.Path(__file__).parent
EVENTS = ["contact.created", "message.created", "contact.lead.updated", "conversation.created", "takeover.request"]
PAGES = ["endpoints", "live", "queue", "health"]
AXE = pathlib.Path(os.environ["AXE"]).read_text()
NAUGHTY = json.loads((HERE.parent / "vectors" / "blns.json").read_text())
# The page's own script, links, descriptions and image.
OWN = 7
SCREENSHOTS = os.environ.get("SCREENSHOTS")

expect.set_options(timeout=20_000)


def watched(page, troubles):
    """Notes whatever a page complains of: errors, refused scripts, dialogs of scripts."""

    def console(message):
        # The browser logs every refusal by itself: no session yet, a form with a fault, a change
        # that somebody else has overtaken.
        is_meant = any(status in message.text for status in ["401", "409", "412", "422"])
        if message.type == "error" and not is_meant:
            troubles.append(f"console: {message.text}")

    page.on("console", console)
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    return page


BARRED = []


def check_access(page, what):
    """Notes every violation of WCAG that axe knows, so that all are told together."""
    # Colours are judged as they are, not while a new row fades in.
    page.evaluate("Promise.all(document.getAnimations().map((a) => a.finished))")
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document)")
    for violation in found["violations"]:
        where = [node["html"][:200] for node in violation["nodes"][:3]]
        BARRED.append(f"{what}: {violation['id']}: {violation['help']}: {where}")


def picture(page, name):
    if SCREENSHOTS:
        pathlib.Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", animations="disabled")


def card(page, name):
    return page.get_by_role("listitem").filter(has=page.get_by_role("heading", name=name, exact=True))


def go(page, name):
    page.get_by_role("navigation").get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()


def sign_in(page, url):
    page.goto(url)
    token = page.get_by_label("Token")
    expect(token).to_be_focused()
    check_access(page, "sign in")
    token.fill("not-the-token")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This is not the token.")
    token.fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1, name="Endpoints")).to_be_visible()
    assert page.evaluate("document.cookie") == "", "the cookie is a script's to read"


def create(page, application):
    """An endpoint, with the keyboard alone; its secret."""
    page.get_by_role("button", name="New endpoint").press("Enter")
    form = page.get_by_role("dialog")
    form.get_by_label("Name").fill("shop")
    form.get_by_label("Path").fill("/webhooks/shop")
    form.get_by_label("Upstream").fill("http://169.254.169.254/latest")
    check_access(page, "the form")
    form.get_by_label("Upstream").press("Enter")
    expect(form.get_by_role("alert")).to_contain_text("upstream: expected")
    form.get_by_label("Upstream").fill(application.url)
    form.get_by_label("Source").fill("Zapier")
    form.get_by_role("button", name="Create").press("Enter")
    shown = page.get_by_role("dialog", name="The secret of shop")
    secret = shown.locator("code").inner_text()
    assert re.fullmatch("[0-9a-f]{64}", secret), secret
    check_access(page, "the secret")
    page.keyboard.press("Escape")
    expect(shown).to_be_hidden()
    expect(card(page, "shop")).to_be_visible()
    return secret


def try_every_event(page, live, application):
    for event in EVENTS:
        card(page, "shop").get_by_role("button", name=event, exact=True).click()
        expect(card(page, "shop").get_by_role("status")).to_contain_text(f"{event}: 200 forwarded")
        headers, body = application.next()
        assert headers["Hookward-Verified"] == "true" and headers["Hookward-Event-Type"] == event
        assert json.loads(body)["type"] == event
        row = live.get_by_role("row").filter(has_text=event)
        expect(row).to_contain_text("forwarded")
    expect(card(page, "shop").get_by_role("img")).to_have_attribute("aria-label", re.compile("5 good"))


def break_the_secret(page, live, hookward, secret):
    card(page, "shop").get_by_role("button", name="Edit").click()
    form = page.get_by_role("dialog", name="Edit shop")
    form.get_by_label("The sender's secret").fill(secret + " ")
    form.get_by_label(re.compile("take away")).check()
    form.get_by_role("button", name="Save").click()
    expect(form).to_be_hidden()
    status, _ = hookward.send("/webhooks/shop", {"type": "message.created"}, secret)
    assert status == 401, status
    row = live.get_by_role("row").filter(has_text="signature_mismatch").first
    row.get_by_role("button", name="shop").click()
    why = live.get_by_role("dialog")
    expect(why).to_contain_text("It matches with the secret trimmed of spaces and newlines.")
    check_access(live, "why")
    picture(live, "why-light")
    live.keyboard.press("Escape")
    expect(row.get_by_role("button", name="shop")).to_be_focused()


def lose_the_application_and_deliver_later(page, hookward, application):
    go(page, "Queue")
    application.stop()
    for number in range(3):
        status, _ = hookward.send("/webhooks/leads", {"type": "contact.created", "payload": {"number": number}})
        assert status == 200, status
    totals = page.get_by_role("region", name="What each endpoint holds")
    expect(totals.get_by_role("row").filter(has_text="leads").get_by_role("cell").nth(1)).to_have_text("3")
    page.get_by_label("State").select_option("pending")
    expect(page.get_by_role("region", name="Events on disk").get_by_role("row")).to_have_count(4)
    # Back, but it does not want these: dead letters.
    application.status = 422
    application.start()
    page.get_by_label("State").select_option("dead")
    rows = page.get_by_role("region", name="Events on disk").get_by_role("row")
    expect(rows).to_have_count(4)
    check_access(page, "dead letters")
    page.get_by_role("button", name="contact.created").first.click()
    event = page.get_by_role("dialog")
    expect(event).to_contain_text("answered 422")
    check_access(page, "a dead letter")
    application.status = 200
    event.get_by_role("button", name="Replay").click()
    expect(event).to_be_hidden()
    expect(rows).to_have_count(3)
    page.get_by_label("Choose all that are shown").check()
    page.get_by_role("button", name="Replay chosen").click()
    expect(page.get_by_text("No dead letters.")).to_be_visible()
    page.get_by_label("State").select_option("delivered")
    expect(rows).to_have_count(4)
    page.get_by_role("button", name="contact.created").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Drop").click()
    expect(rows).to_have_count(3)


def look_at_the_quarantine(page, hookward):
    hookward.send("/webhooks/crm", {"type": "message.created"}, "another-secret")
    go(page, "Queue")
    page.get_by_role("button", name="Look").click()
    box = page.get_by_role("dialog", name="Quarantine of crm")
    box.get_by_role("button", name="Why?").click()
    expect(box).to_contain_text("most likely the secret is another one")
    check_access(page, "quarantine")
    page.keyboard.press("Escape")


def switch_off_and_remove(page):
    go(page, "Endpoints")
    switch = card(page, "shop").get_by_role("switch")
    switch.press("Space")
    expect(switch).to_have_attribute("aria-checked", "false")
    card(page, "shop").get_by_role("button", name="message.created", exact=True).click()
    expect(card(page, "shop").get_by_role("status")).to_contain_text("503 rejected (inactive)")
    card(page, "shop").get_by_role("button", name="Remove").click()
    sure = page.get_by_role("dialog", name="Remove shop?")
    expect(sure).to_contain_text("made by Zapier")
    sure.get_by_role("button", name="Cancel").click()
    expect(card(page, "shop")).to_be_visible()
    card(page, "shop").get_by_role("button", name="Remove").click()
    sure.get_by_role("button", name="Remove").click()
    expect(card(page, "shop")).to_have_count(0)


def overtake_an_edit_and_take_events_over(page, hookward, application):
    settings = {"path": "/webhooks/late", "upstream": "http://127.0.0.1:9/", "mode": "queue",
                "secrets": [{"name": "main", "value": SECRET}]}
    hookward.api("POST", "/endpoints", {"name": "late", "settings": settings})
    status, _ = hookward.send("/webhooks/late", {"type": "message.created"})
    assert status == 200, status
    card(page, "late").get_by_role("button", name="Edit").click()
    hookward.api("PUT", "/endpoints/late/active", {"active": False})
    form = page.get_by_role("dialog", name="Edit late")
    form.get_by_role("button", name="Save").click()
    expect(form.get_by_role("alert")).to_contain_text("changed meanwhile")
    page.keyboard.press("Escape")
    hookward.api("DELETE", "/endpoints/late")
    page.get_by_role("button", name="New endpoint").click()
    form = page.get_by_role("dialog", name="New endpoint")
    form.get_by_label("Name").fill("late")
    form.get_by_label("Path").fill("/webhooks/late")
    form.get_by_label("Upstream").fill(application.url)
    form.get_by_label("Mode").select_option("queue")
    form.get_by_role("button", name="Create").click()
    sure = page.get_by_role("dialog", name="Deliver them to the new late?")
    expect(sure).to_be_visible()
    check_access(page, "taking over")
    sure.get_by_role("button", name="Cancel").click()
    expect(form.get_by_role("alert")).to_contain_text("wait on disk")
    form.get_by_role("button", name="Create").click()
    sure.get_by_role("button", name="Take them over").click()
    expect(page.get_by_role("dialog", name="The secret of late")).to_be_visible()
    page.keyboard.press("Escape")
    eventually("they are delivered", lambda: hookward.api("GET", "/queue/events?endpoint=late&state=delivered")["items"])
    hookward.api("DELETE", "/endpoints/late")


def is_value(text):
    """Whether a text can be a header's value."""
    raw = text.encode("utf-8", "surrogatepass")
    return raw and all(byte >= 0x20 and byte != 0x7F for byte in raw)


def naughty_strings_stay_text(page, live, hookward):
    """As bodies, headers, keys and names; nothing is run, fetched or built of them."""
    inert = [text for text in NAUGHTY if text.strip()]
    values = [text for text in inert if is_value(text)]
    marked = [text for text in inert if "<" in text][:40]
    for text in values:
        if len(text.encode()) <= 255:
            hookward.send("/webhooks/crm", {"type": text}, key=text.encode("utf-8"))
    _, whole = hookward.send("/webhooks/crm", {"type": "message.created", "strings": inert})
    _, keys = hookward.send("/webhooks/crm", {"type": "message.created", "keys": {text: 1 for text in inert}})
    shown = {"strings": whole, "keys": keys}
    for start in range(0, len(values), 60):
        headers = [(f"X-Naughty-{n}", v.encode("utf-8")) for n, v in enumerate(values[start:start + 60])]
        _, shown[f"headers {start}"] = hookward.send("/webhooks/crm", {"type": "message.created"}, headers=headers)
    for text in marked:
        _, shown[text] = hookward.send("/webhooks/crm", text)
    settings = {
        "path": "/naughty", "upstream": "http://127.0.0.1:9/", "description": " ".join(inert),
        "source": " ".join(marked), "events": list(dict.fromkeys(inert))[:50],
        "secrets": [{"name": text, "value": "s" * 32} for text in dict.fromkeys(marked)],
    }
    hookward.api("POST", "/endpoints", {"name": "naughty", "settings": settings})
    built = "document.querySelectorAll('script, iframe, object, embed, form, img, style, link, base, meta, video, audio').length"
    for name in PAGES:
        go(page, name.capitalize())
        if name == "endpoints":
            expect(card(page, "naughty")).to_be_visible()
            text = card(page, "naughty").text_content()
            assert all(one in text for one in marked), "names are not shown as they are"
        assert page.evaluate(built) == OWN, f"{name}: {page.evaluate(built)} elements, not {OWN}"
    live.reload()
    for what, event_id in shown.items():
        row = live.locator(f"tr[data-id='{event_id}']")
        row.get_by_role("button").click()
        text = live.get_by_role("dialog").text_content()
        if what == "strings":
            missing = [one for one in inert if json.dumps(one, ensure_ascii=False) not in text and json.dumps(one) not in text]
            assert not missing, missing[:3]
        elif what not in ("keys",) and not what.startswith("headers"):
            assert what in text, what
        assert live.evaluate(built) == OWN, what
        live.keyboard.press("Escape")
    hookward.api("DELETE", "/endpoints/naughty")


def look_at_every_page(browser, hookward, url, troubles):
    """Each page in both schemes, wide and narrow: no violation, nothing cut off."""
    for scheme in ["light", "dark"]:
        for width, height in [(1280, 860), (390, 844)]:
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
            page = watched(context.new_page(), troubles)
            page.goto(url)
            page.get_by_label("Token").fill(TOKEN)
            page.keyboard.press("Enter")
            for name in PAGES:
                go(page, name.capitalize())
                if name == "live":
                    status, _ = hookward.send("/webhooks/crm", {"type": "message.created", "payload": {"n": 1}})
                    expect(page.get_by_role("row").nth(3)).to_be_visible()
                if name == "queue":
                    expect(page.get_by_role("region", name="What each endpoint holds")).to_be_visible()
                if name == "endpoints":
                    expect(card(page, "leads")).to_be_visible()
                if name == "health":
                    expect(page.get_by_role("heading", name="Latency")).to_be_visible()
                check_access(page, f"{name}, {scheme}, {width}")
                over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert over <= 0, f"{name}: {over} pixels too wide at {width}"
                picture(page, f"{name}-{scheme}" if width > 400 else f"{name}-phone-{scheme}")
            context.close()


@contextlib.contextmanager
def told_at_the_end(troubles):
    """Says what pages complained of and what bars people, also where something else went wrong."""
    try:
        yield
    finally:
        print("\n".join(troubles + BARRED))


def main():
    application, troubles = Application(), []
    hookward = Hookward(application)
    url = f"http://{hookward.admin}/"
    with sync_playwright() as playwright, told_at_the_end(troubles):
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
        context = browser.new_context(color_scheme="light", viewport={"width": 1280, "height": 860})
        page = watched(context.new_page(), troubles)
        sign_in(page, url)
        live = watched(context.new_page(), troubles)
        live.goto(url + "#/live")
        expect(live.get_by_text("Capturing is on")).to_be_visible()
        secret = create(page, application)
        try_every_event(page, live, application)
        break_the_secret(page, live, hookward, secret)
        lose_the_application_and_deliver_later(page, hookward, application)
        look_at_the_quarantine(page, hookward)
        switch_off_and_remove(page)
        overtake_an_edit_and_take_events_over(page, hookward, application)
        look_at_every_page(browser, hookward, url, troubles)
        naughty_strings_stay_text(page, live, hookward)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        browser.close()
    hookward.end()
    application.stop()
    assert not troubles + BARRED, "see above"
    print("the dashboard does what it should")


main()
