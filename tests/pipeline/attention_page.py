#!/usr/bin/env python3
"""Looks at a page of `squint inspect --attention` as a person would, in a headless Chromium: wide and narrow, light and dark; with the
mouse and with the keyboard. Fails on an error in the console, on any request but the page itself, on a page that is wider than its
window, on tokens or figures that do not follow what is chosen.
usage: attention_page.py PAGE.html [--screens FOLDER] [--holds TEXT]...     (exit code 77: no Chromium)"""
import argparse, base64, json, os, shutil, subprocess, sys, tempfile, time, urllib.parse


class Browser:
    """Chromium's own protocol over a pair of pipes: nothing but Python is needed."""

    def __init__(self, program, folder):
        to_read, self.to_write = os.pipe()
        self.from_read, from_write = os.pipe()
        # The browser reads commands from descriptor 3 and writes to descriptor 4.
        command = f"exec 3<&{to_read} 4>&{from_write}; exec \"$@\""
        self.process = subprocess.Popen(
            ["bash", "-c", command, "-", program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(to_read, from_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(from_write)
        self.number, self.rest, self.events, self.session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(domain + ".enable")

    def receive(self):
        while b"\0" not in self.rest:
            piece = os.read(self.from_read, 1 << 20)
            if not piece:
                raise SystemExit("the browser ended")
            self.rest += piece
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def ask(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise SystemExit(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def settle(self):
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30))))")

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x, y):
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
        self.settle()

    def key(self, name, text=""):
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)
        self.settle()

    def end(self):
        self.process.terminate()
        self.process.wait()


def places(browser, panel, token):
    """The middle of a token, scrolled into sight."""
    return browser.ask(f"""(() => {{ const t = document.querySelectorAll(".text")[{panel}].querySelectorAll(".t")[{token}];
        t.scrollIntoView({{block: "center"}}); const box = t.getClientRects()[0]; return [box.left + box.width / 2, box.top + box.height / 2]; }})()""")


class Checks:
    def __init__(self):
        self.failures = 0

    def equal(self, what, found, expected):
        if found != expected:
            self.failures += 1
            print(f"{what}: expected {expected!r}, found {found!r}")

    def true(self, what, holds):
        self.equal(what, bool(holds), True)


def state(browser):
    return browser.ask("""(() => { const list = [...document.querySelectorAll(".text")[0].querySelectorAll(".t")];
        return {chosen: list.findIndex(t => t.classList.contains("now")), held: document.getElementById("pin").getAttribute("aria-pressed"),
                tokens: list.length, panels: document.querySelectorAll(".text").length,
                coloured: [...document.querySelectorAll(".text")].map(p => [...p.querySelectorAll(".t")].filter(t => t.style.backgroundColor).length),
                read: list.filter((t, j) => !t.classList.contains("later") && !/unread|summed|unknown/.test(t.className)).length,
                figure: document.querySelector("dd").textContent, wide: document.documentElement.scrollWidth - innerWidth,
                place: document.getElementById("place").textContent} })()""")


def use(browser, check, name):
    """Everything a person does, once."""
    tokens, panels = state(browser)["tokens"], state(browser)["panels"]
    for panel in range(panels):
        token = tokens * (2 + panel) // 4
        browser.mouse("mouseMoved", *places(browser, panel, token))
        browser.settle()
        now = state(browser)
        check.equal(f"{name}: the token under the mouse, panel {panel}", now["chosen"], token)
        check.true(f"{name}: coloured tokens, panel {panel}", now["coloured"][panel] > 0)
    browser.ask("document.querySelectorAll('#heads button')[1].click()")
    browser.settle()
    now = state(browser)
    check.equal(f"{name}: tokens read by a head", now["figure"].split(" of ")[0], str(now["read"]))
    browser.click(*places(browser, 0, tokens // 2))
    check.equal(f"{name}: held by a click", state(browser)["held"], "true")
    browser.mouse("mouseMoved", *places(browser, 0, tokens // 2 - 2))
    browser.settle()
    check.equal(f"{name}: a held token stays", state(browser)["chosen"], tokens // 2)
    check.true(f"{name}: and another's weight is told", state(browser)["place"].startswith("“"))
    browser.key("Escape")
    check.equal(f"{name}: let go by Escape", state(browser)["held"], "false")
    browser.ask(f"document.querySelectorAll('.text')[0].querySelectorAll('.t')[{tokens // 2}].focus()")
    for key, expected in (("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowLeft", -1)):
        browser.key(key)
        check.equal(f"{name}: {key}", state(browser)["chosen"], tokens // 2 + expected)
    browser.key("ArrowUp")
    check.true(f"{name}: ArrowUp", state(browser)["chosen"] <= tokens // 2 - 1)
    browser.key("Home")
    check.equal(f"{name}: Home", state(browser)["chosen"], 0)
    browser.key("End")
    check.equal(f"{name}: End", state(browser)["chosen"], tokens - 1)
    check.true(f"{name}: focus is seen", browser.ask("getComputedStyle(document.activeElement).outlineStyle") != "none")
    check.true(f"{name}: said aloud", "reads" in browser.ask("document.getElementById('say').textContent"))
    browser.key("Enter", "\r")
    check.equal(f"{name}: held by Enter", state(browser)["held"], "true")
    browser.key("Enter", "\r")
    count = browser.ask("document.querySelectorAll('#layers button').length")
    for layer in range(count):
        browser.ask(f"document.querySelectorAll('#layers button')[{layer}].click()")
        browser.settle()
        check.equal(f"{name}: layer {layer}", browser.ask("[...document.querySelectorAll('#layers button')].findIndex(b => b.getAttribute('aria-pressed') === 'true')"), layer)
        check.true(f"{name}: layer {layer}: its heat map", browser.ask("(c => { const empty = document.createElement('canvas'); empty.width = c.width; empty.height = c.height; return c.toDataURL() !== empty.toDataURL(); })(document.getElementById('map0'))"))
    browser.key("[")
    browser.ask("document.querySelectorAll('#heads button')[0].click()")
    browser.settle()
    browser.mouse("mouseMoved", *places(browser, 0, tokens * 3 // 5))
    browser.settle()


def look_at(browser, check, page, arguments, width, height, scheme):
    name = f"{width} {scheme}"
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.events.clear()
    browser.call("Page.navigate", url=page)
    started = time.monotonic()
    while not browser.ask("document.querySelectorAll('.now').length"):
        if time.monotonic() - started > 30:
            raise SystemExit(f"{name}: no token is chosen after 30 s: {browser.ask('document.body.innerText')[:400]}")
        time.sleep(0.05)
    browser.settle()
    use(browser, check, name)
    check.true(f"{name}: no wider than its window", state(browser)["wide"] <= 0)
    for text in arguments.holds:
        check.true(f"{name}: holds {text!r}", text in browser.ask("document.querySelector('.text').textContent"))
    if arguments.screens:
        browser.ask("scrollTo(0, 0)")
        browser.settle()
        picture = browser.call("Page.captureScreenshot", format="png")["data"]
        with open(os.path.join(arguments.screens, f"{width}-{scheme}.png"), "wb") as out:
            out.write(base64.b64decode(picture))
    for event in browser.events:
        method, told = event.get("method"), event.get("params", {})
        wrong = {"Runtime.exceptionThrown": True, "Runtime.consoleAPICalled": told.get("type") in ("error", "warning", "assert"),
                 "Log.entryAdded": told.get("entry", {}).get("level") in ("error", "warning"),
                 "Network.requestWillBeSent": told.get("request", {}).get("url") != page}.get(method, False)
        check.true(f"{name}: {method}: {json.dumps(told)[:500]}", not wrong)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("page")
    parser.add_argument("--screens")
    parser.add_argument("--holds", action="append", default=[])
    arguments = parser.parse_args()
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
    if not program:
        print("skipped: no chromium or google-chrome is installed")
        sys.exit(77)
    if arguments.screens:
        os.makedirs(arguments.screens, exist_ok=True)
    check = Checks()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the browser's helpers may still write
        browser = Browser(program, folder)
        try:
            page = "file://" + urllib.parse.quote(os.path.abspath(arguments.page))
            for width, height in ((1280, 900), (390, 844)):
                for scheme in ("light", "dark"):
                    look_at(browser, check, page, arguments, width, height, scheme)
        finally:
            browser.end()
    print("the page is as it should be" if check.failures == 0 else f"{check.failures} faults")
    sys.exit(check.failures > 0)


if __name__ == "__main__":
    main()
