"""The console in a real browser, against real members."""

import http.client
import json
import os
import re
import subprocess
import sys

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "bench"))
from common import Kvorum, get  # noqa: E402

KVORUM = os.environ["KVORUM"]
PATIENCE = 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Kvorum(KVORUM, str(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def ui(cluster):
    """The port of a `kvorum ui` that knows one member."""
    command = [KVORUM, "ui", "--listen", "127.0.0.1:0", "--endpoints", f"127.0.0.1:{cluster.client_ports[0]}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline()).group(1))
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0


@pytest.fixture
def browser():
    options = Options()
    # Containers have neither a user namespace for the sandbox nor much /dev/shm.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,720"):
        options.add_argument(argument)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def wait(browser, what, condition):
    return WebDriverWait(browser, PATIENCE, poll_frequency=0.1).until(lambda _: condition(), f"waited for {what}")


def cards(browser):
    return {card.get_attribute("data-member"): card for card in browser.find_elements("css selector", "article")}


def states(browser):
    """Member to state, read in one step, because the page draws anew at any moment."""
    return browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('article')]"
        ".map(card => [card.dataset.member, card.querySelector('.state').textContent]))")


def figures(browser, name):
    return browser.execute_script(
        "return Object.fromEntries([...document.querySelectorAll(`article[data-member='${arguments[0]}'] dl div`)]"
        ".map(line => [line.querySelector('dt').textContent, line.querySelector('dd').lastChild.textContent]))", name)


def summary(browser):
    return browser.find_element("css selector", ".summary").text


def open_page(browser, url, members=3):
    browser.get(url)
    wait(browser, "members and a leader", lambda: len(states(browser)) == members
         and sorted(states(browser).values()) == ["follower"] * (members - 1) + ["leader"])


def press(browser, name, button, key=None, value=None):
    card = cards(browser)[name]
    for field, text in (("key", key), ("value", value)):
        if text is not None:
            # As a person empties a field; `clear()` does not tell the page.
            card.find_element("name", field).send_keys(Keys.CONTROL, "a")
            card.find_element("name", field).send_keys(Keys.BACKSPACE, text)
    output = card.find_element("css selector", "output")
    runs = output.get_attribute("data-runs")
    next(b for b in card.find_elements("css selector", "button") if b.text == button).click()
    wait(browser, "an answer", lambda: output.get_attribute("data-runs") != runs)
    return output.text


def test_the_page_shows_what_each_member_says(browser, cluster, ui):
    open_page(browser, f"http://127.0.0.1:{ui}/")
    assert sorted(states(browser)) == ["n0", "n1", "n2"]
    for n, port in enumerate(cluster.client_ports):
        def agrees():
            info = json.loads(get(port, "/raft/info")[1])
            return figures(browser, f"n{n}") == {
                "term": info["term"], "commit index": info["commitIndex"], "last applied": info["lastApplied"],
                "last log index": info["lastLogIndex"], "last log term": info["lastLogTerm"],
            } and states(browser)[f"n{n}"] == info["state"]
        wait(browser, f"the figures of n{n}", agrees)
    assert re.fullmatch(r"3 of 3 members answer · n\d leads in term \d+", summary(browser))
    assert browser.get_log("browser") == []


def test_get_set_and_del_on_any_member(browser, ui):
    open_page(browser, f"http://127.0.0.1:{ui}/")
    key, value = "a key/with ünicode & <b>", "<script>alert(1)</script> 你好"
    assert press(browser, "n0", "Set", key, value).startswith("set · ")
    for name in ("n0", "n1", "n2"):
        answer = press(browser, name, "Get", key)
        assert answer.startswith("found · ") and answer.endswith(value)
    assert press(browser, "n2", "Del", key).startswith("deleted · ")
    assert press(browser, "n1", "Get", key).startswith("not found · ")
    assert press(browser, "n1", "Set", "", "x") == "give a key"
    assert press(browser, "n1", "Set", "k" * 5000, "x").startswith("set: ")


def test_a_member_that_is_down_shows_as_down_and_comes_back(browser, cluster, ui):
    open_page(browser, f"http://127.0.0.1:{ui}/")
    leader = next(name for name, state in states(browser).items() if state == "leader")
    cluster.kill(int(leader[1:]))
    wait(browser, "down", lambda: states(browser)[leader] == "down")
    wait(browser, "the next leader", lambda: sorted(states(browser).values()) == ["down", "follower", "leader"])
    assert summary(browser).startswith("2 of 3 members answer · ")
    other = next(name for name in states(browser) if name != leader)
    assert press(browser, other, "Set", "while one is down", "1").startswith("set · ")
    cluster.start(int(leader[1:]))
    wait(browser, "its return", lambda: states(browser)[leader] == "follower")
    wait(browser, "an answer", lambda: press(browser, leader, "Get", "while one is down").endswith("1"))


def test_the_refresh_interval_is_kept_and_pauses(browser, cluster, ui):
    url = f"http://127.0.0.1:{ui}/"
    open_page(browser, url)
    Select(browser.find_element("css selector", "select")).select_by_visible_text("paused")
    open_page(browser, url)
    chosen = Select(browser.find_element("css selector", "select"))
    assert chosen.first_selected_option.text == "paused"
    before = figures(browser, "n0")["commit index"]
    press(browser, "n0", "Set", "while paused", "1")
    assert figures(browser, "n0")["commit index"] == before
    chosen.select_by_visible_text("0.5 s")
    wait(browser, "newer figures", lambda: int(figures(browser, "n0")["commit index"]) > int(before))


def test_the_members_can_be_chosen(browser, cluster):
    """On a member's own port: it is called by its own origin, the others by theirs."""
    port = cluster.client_ports[0]
    open_page(browser, f"http://127.0.0.1:{port}/")
    assert browser.current_url == f"http://127.0.0.1:{port}/console/"

    def choose(lines):
        if not browser.find_elements("css selector", ".members"):
            browser.find_element("css selector", ".top button[name=members]").click()
        field = browser.find_element("name", "list")
        field.clear()
        field.send_keys(lines)
        browser.find_element("css selector", ".members button[type=submit]").click()

    choose("127.0.0.1:bad")
    assert "127.0.0.1:bad" in browser.find_element("css selector", ".members [role=alert]").text
    choose(f"first=http://127.0.0.1:{port}\nnobody=127.0.0.1:1")
    wait(browser, "the chosen ones", lambda: sorted(states(browser)) == ["n0", "nobody"])
    wait(browser, "one down", lambda: states(browser)["nobody"] == "down")
    browser.refresh()
    wait(browser, "the same after a reload", lambda: sorted(states(browser)) == ["n0", "nobody"])
    browser.find_element("css selector", ".top button[name=members]").click()
    browser.find_element("xpath", "//button[starts-with(., 'The cluster')]").click()
    wait(browser, "the cluster's list", lambda: sorted(states(browser)) == ["n0", "n1", "n2"])


def ask(port, path, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_foreign_page_cannot_call_through_the_console(cluster, ui):
    via = f"/via/127.0.0.1:{cluster.client_ports[0]}/raft/info"
    ask(ui, "/config.json", {})
    assert ask(ui, via, {}) == 200
    assert ask(ui, via, {"Origin": "http://evil.example"}) == 403
    assert ask(ui, via, {"Host": "evil.example"}) == 403
    assert ask(ui, "/via/127.0.0.1:1/raft/info", {}) == 403
    assert ask(ui, via.replace("/raft/info", "/metrics"), {}) == 404


ROOT, ME = ("root", "r00t"), ("me", "secret of me")


def kvorum(cluster, *words):
    """Runs a command against the cluster."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KVORUM_")}
    subprocess.run([KVORUM, *words, "--endpoints", cluster.endpoints()], env=environment, check=True,
                   stdout=subprocess.DEVNULL, timeout=60)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A cluster with authentication, where `me` may write below `own/`."""
    with Kvorum(KVORUM, str(tmp_path_factory.mktemp("guarded"))) as cluster:
        for line in ("user add root:r00t", "user grant-role root root", f"user add {ME[0]}:{ME[1]}", "role add own",
                     "role grant-permission own readwrite own/ --prefix", "user grant-role me own", "auth enable"):
            kvorum(cluster, *(line.split(" ", 2) if line.startswith("user add") else line.split()))
        yield cluster


def login_forms(browser):
    return browser.find_elements("css selector", "form.login")


def log_in(browser, user, password):
    wait(browser, "the login form", lambda: login_forms(browser))
    for field, text in (("user", user), ("password", password)):
        browser.find_element("name", field).send_keys(Keys.CONTROL, "a")
        browser.find_element("name", field).send_keys(Keys.BACKSPACE, text)
    browser.find_element("css selector", "form.login button").click()


def refusals(browser):
    return [alert.text for alert in browser.find_elements("css selector", "form.login [role=alert]")]


def user_shown(browser):
    return [user.text for user in browser.find_elements("css selector", ".user strong")]


def is_open(browser):
    return sorted(states(browser).values()) == ["follower", "follower", "leader"]


def open_guarded(browser, url):
    browser.get(url)
    wait(browser, "locked members", lambda: sorted(states(browser).values()) == ["locked"] * 3)
    assert user_shown(browser) == []


def test_whom_members_do_not_know_the_page_asks_to_log_in(browser, guarded):
    """On a member's own port: the others are called by their own origins, with the same token."""
    open_guarded(browser, f"http://127.0.0.1:{guarded.client_ports[0]}/")
    assert summary(browser) == "3 of 3 members ask who calls: log in"
    assert press(browser, "n1", "Get", "own/a") == "get: log in first"
    log_in(browser, ME[0], "wrong")
    wait(browser, "the refusal", lambda: refusals(browser) == ["wrong user or password"])
    assert browser.find_element("name", "password").get_attribute("value") == ""
    log_in(browser, "nobody", "wrong")
    wait(browser, "the same refusal", lambda: refusals(browser) == ["wrong user or password"])
    log_in(browser, *ME)
    wait(browser, "all figures", lambda: is_open(browser))
    assert login_forms(browser) == [] and user_shown(browser) == [ME[0]]

    assert press(browser, "n2", "Set", "own/a", "1").startswith("set · ")
    assert press(browser, "n1", "Get", "own/a").endswith("1")
    assert press(browser, "n1", "Set", "other", "1") == "set: me has no permission for this"
    assert press(browser, "n1", "Get", "other") == "get: me has no permission for this"
    assert press(browser, "n0", "Del", "other") == "del: me has no permission for this"

    # The token is in memory only, the password nowhere.
    stored = browser.execute_script("return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    assert ME[1] not in stored and "token" not in stored.lower(), stored

    browser.find_element("css selector", ".user button").click()
    wait(browser, "locked members", lambda: sorted(states(browser).values()) == ["locked"] * 3)
    wait(browser, "the form", lambda: login_forms(browser))
    assert user_shown(browser) == []
    log_in(browser, *ROOT)
    wait(browser, "all figures", lambda: is_open(browser))
    assert user_shown(browser) == [ROOT[0]]
    assert press(browser, "n1", "Set", "other", "1").startswith("set · ")
    browser.refresh()
    wait(browser, "locked members", lambda: sorted(states(browser).values()) == ["locked"] * 3)


def test_a_login_that_ended_makes_the_page_ask_again(browser, guarded):
    open_guarded(browser, f"http://127.0.0.1:{guarded.client_ports[0]}/")
    log_in(browser, *ME)
    wait(browser, "all figures", lambda: is_open(browser))
    # Another password ends all logins of a user; that it is the same one again changes nothing.
    kvorum(guarded, "user", "passwd", ":".join(ME), "--user", ":".join(ROOT))
    wait(browser, "locked members", lambda: sorted(states(browser).values()) == ["locked"] * 3)
    wait(browser, "the form", lambda: login_forms(browser))
    assert "The login of me ended." in login_forms(browser)[0].text
    assert press(browser, "n0", "Set", "own/late", "1") == "set: log in first"
    log_in(browser, *ME)
    wait(browser, "all figures", lambda: is_open(browser) and not login_forms(browser))
    assert press(browser, "n0", "Set", "own/late", "1").startswith("set · ")


def test_where_nobody_has_to_log_in_any_more_the_page_does_not_ask(browser, guarded):
    open_guarded(browser, f"http://127.0.0.1:{guarded.client_ports[0]}/")
    try:
        kvorum(guarded, "auth", "disable", "--user", ":".join(ROOT))
        wait(browser, "all figures", lambda: is_open(browser) and not login_forms(browser))
    finally:
        kvorum(guarded, "auth", "enable")


def test_the_page_of_kvorum_ui_logs_in_through_it(browser, guarded):
    command = [KVORUM, "ui", "--listen", "127.0.0.1:0", "--endpoints", guarded.endpoints()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline()).group(0)
            open_guarded(browser, url)
            log_in(browser, *ME)
            wait(browser, "all figures", lambda: is_open(browser))
            assert press(browser, "n1", "Set", "own/a", "2").startswith("set · ")
            assert press(browser, "n1", "Set", "other", "2") == "set: me has no permission for this"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def test_the_login_form_can_be_read_in_light_and_dark(browser, guarded):
    """Text and paper differ enough (WCAG's 4.5 to 1). `KVORUM_SCREENSHOTS` names a directory for pictures of both."""
    contrast = """
        const light = (color) => {
          const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
            .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const form = document.querySelector("form.login");
        const paper = (element) => {
          const color = getComputedStyle(element).backgroundColor;
          return color === "rgba(0, 0, 0, 0)" ? paper(element.parentElement) : color;
        };
        return [form.querySelector("h2"), form.querySelector("p"), ...form.querySelectorAll("label, input, button")]
          .map((element) => {
            const [a, b] = [light(getComputedStyle(element).color), light(paper(element))].sort((a, b) => b - a);
            return (a + 0.05) / (b + 0.05);
          });"""
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        open_guarded(browser, f"http://127.0.0.1:{guarded.client_ports[0]}/")
        wait(browser, "the form", lambda: login_forms(browser))
        assert browser.switch_to.active_element.get_attribute("name") == "user"
        ratios = browser.execute_script(contrast)
        assert len(ratios) == 7 and min(ratios) >= 4.5, (scheme, ratios)
        if directory := os.environ.get("KVORUM_SCREENSHOTS"):
            log_in(browser, "me", "wrong")
            wait(browser, "the refusal", lambda: refusals(browser))
            browser.save_screenshot(os.path.join(directory, f"login-{scheme}.png"))
