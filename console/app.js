// The live page of a cluster: polls every member by itself and shows it, with Get, Set and Del on each. Where members
// ask who calls, it asks for user and password, keeps the token that it gets for them, and nothing of both longer than
// the page lives.

import { Component, createRef, h, render } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";
import { del, get, logIn, parseMembers, probe, set } from "./member.js";

const html = htm.bind(h);

const INTERVALS = [["0.5 s", 500], ["1 s", 1000], ["2 s", 2000], ["5 s", 5000], ["paused", 0]];
const SAVED = "kvorum-console";

/** What the reader has chosen, kept in this browser. */
const saved = {
  read() {
    try {
      return JSON.parse(localStorage.getItem(SAVED)) || {};
    } catch {
      return {};
    }
  },
  write(changes) {
    try {
      localStorage.setItem(SAVED, JSON.stringify({ ...saved.read(), ...changes }));
    } catch {
      // Storage may be switched off; the choice then lasts as long as the page.
    }
  },
};

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const largest = (numbers) => numbers.reduce((a, b) => (a > b ? a : b), 0n);

/** One member: its figures, or why it is down, and its three operations. */
class Member extends Component {
  state = { key: "", value: "", result: null, busy: false, runs: 0 };

  async run(word, operation) {
    const { key } = this.state;
    const done = (result) => this.setState(({ runs }) => ({ busy: false, runs: runs + 1, result }));
    if (!key) return done({ tone: "bad", text: "give a key" });
    this.setState({ busy: true, result: null });
    const start = performance.now();
    let result;
    try {
      result = await operation(key);
      result.text += ` · ${(performance.now() - start).toFixed(1)} ms`;
    } catch (error) {
      result = { tone: "bad", text: `${word}: ${error.wantsLogin ? "log in first" : error.message}` };
      if (error.wantsLogin) this.props.onLocked();
    }
    done(result);
  }

  get = () => this.run("get", async (key) => {
    const value = await get(this.props.member.base, key, this.props.session);
    if (value === null) return { tone: "none", text: "not found" };
    return { tone: "good", text: "found", value };
  });
  set = () => this.run("set", async (key) => {
    await set(this.props.member.base, key, this.state.value, this.props.session);
    return { tone: "good", text: "set" };
  });
  del = () => this.run("del", async (key) => {
    await del(this.props.member.base, key, this.props.session);
    return { tone: "good", text: "deleted" };
  });

  render({ member, seen, commit }, { key, value, result, busy, runs }) {
    const figures = seen?.figures;
    const state = !seen ? "asking" : figures ? figures.state : seen.locked ? "locked" : "down";
    const behind = figures && commit > figures.applied ? commit - figures.applied : 0n;
    const submit = (event) => {
      event.preventDefault();
      this.get();
    };
    return html`
      <article class="member ${state}" data-member=${figures?.name || member.name}>
        <header>
          <h2>${figures?.name || member.name}</h2>
          <span class="state">${state}</span>
          <span class="address">${member.address}</span>
        </header>
        ${figures
          ? html`<dl>
              <${Figure} name="term" value=${figures.term} />
              <${Figure} name="commit index" value=${figures.commit} />
              <${Figure} name="last applied" value=${figures.applied}
                note=${behind > 0n ? `${behind} behind` : "in sync"} />
              <${Figure} name="last log index" value=${figures.lastIndex} />
              <${Figure} name="last log term" value=${figures.lastTerm} />
            </dl>`
          : html`<p class="why">${!seen ? "asking …" : seen.locked ? "shows its figures to users who are logged in"
              : `${seen.why}, ${since(seen.at)}`}</p>`}
        <form onSubmit=${submit}>
          <input aria-label="Key on ${member.name}" name="key" placeholder="key" autocomplete="off" spellcheck=${false}
            value=${key} onInput=${(event) => this.setState({ key: event.target.value })} />
          <input aria-label="Value on ${member.name}" name="value" placeholder="value" autocomplete="off"
            spellcheck=${false} value=${value} onInput=${(event) => this.setState({ value: event.target.value })} />
          <div class="buttons">
            <button type="submit" disabled=${busy}>Get</button>
            <button type="button" disabled=${busy} onClick=${this.set}>Set</button>
            <button type="button" disabled=${busy} onClick=${this.del}>Del</button>
          </div>
          <output class=${result?.tone || ""} aria-live="polite" data-runs=${runs}>
            ${busy ? "…" : result?.text}${result?.value !== undefined && html`<pre>${result.value}</pre>`}
          </output>
        </form>
      </article>`;
  }
}

const Figure = ({ name, value, note }) => html`
  <div><dt>${name}</dt><dd>${note && html`<small>${note}</small>`}${value.toString()}</dd></div>`;

function since(at) {
  const seconds = Math.round((Date.now() - at) / 1000);
  return seconds < 1 ? "just now" : `for ${seconds} s`;
}

/** The cluster in one sentence, and whether it can write. */
function summary(members, seen) {
  const answers = members.map((member) => seen.get(member.base));
  if (answers.some((answer) => !answer)) return { tone: "asking", text: "Asking the members …" };
  const locked = answers.filter((answer) => answer.locked).length;
  if (locked) return { tone: "warn", text: `${locked} of ${plural(members.length, "member")} ${locked === 1 ? "asks" : "ask"} who calls: log in` };
  const up = answers.filter((answer) => answer.figures).map((answer) => answer.figures);
  const count = `${up.length} of ${plural(members.length, "member")} ${up.length === 1 ? "answers" : "answer"}`;
  const term = largest(up.map((figures) => figures.term));
  const leader = up.find((figures) => figures.state === "leader" && figures.term === term);
  if (leader) {
    const tone = up.length === members.length ? "good" : "warn";
    return { tone, text: `${count} · ${leader.name} leads in term ${term}` };
  }
  const named = up.find((figures) => figures.term === term && figures.leader)?.leader;
  if (named) return { tone: "warn", text: `${count} · they say that ${named} leads in term ${term}` };
  return { tone: "bad", text: `${count} · no leader: reads and writes wait for a majority` };
}

/** Which members are shown: the cluster's own list, or the reader's. */
class Members extends Component {
  state = { error: null };

  save = (event) => {
    event.preventDefault();
    try {
      this.props.onChange(parseMembers(event.target.elements.list.value));
    } catch (error) {
      this.setState({ error: error.message });
    }
  };

  render({ members, isOwn, onChange, onClose }, { error }) {
    const list = members.map((member) => `${member.name}=${member.base.includes("://") ? member.base : member.address}`);
    return html`
      <form class="members" onSubmit=${this.save}>
        <label>Members, one a line: <code>NAME=URL</code>
          <textarea name="list" rows=${Math.max(3, list.length)} spellcheck=${false}>${list.join("\n")}</textarea>
        </label>
        <p>A browser may call another origin only if that member allows it (<code>--cors</code>).</p>
        ${error && html`<p class="bad" role="alert">${error}</p>`}
        <div class="buttons">
          <button type="submit">Show these</button>
          <button type="button" disabled=${isOwn} onClick=${() => onChange(null)}>The cluster's own list</button>
          <button type="button" onClick=${onClose}>Cancel</button>
        </div>
      </form>`;
  }
}

/** Asks who the reader is. The password goes no further than into the one call. */
class Login extends Component {
  state = { error: null, busy: false };
  form = createRef();

  componentDidMount() {
    this.form.current.elements.user.focus();
  }

  logIn = async (event) => {
    event.preventDefault();
    const { user, password } = event.target.elements;
    this.setState({ busy: true, error: null });
    try {
      this.props.onSession(await logIn(this.props.bases, user.value, password.value));
    } catch (error) {
      password.value = "";
      this.setState({ busy: false, error: error.message }, () => password.focus());
    }
  };

  render({ user }, { error, busy }) {
    return html`
      <form class="login" ref=${this.form} onSubmit=${this.logIn} aria-label="Log in">
        <h2>Log in</h2>
        <p>${user ? `The login of ${user} ended.` : "This cluster asks who calls."}</p>
        <label>User <input name="user" autocomplete="username" spellcheck=${false} required defaultValue=${user} /></label>
        <label>Password <input name="password" type="password" autocomplete="current-password" /></label>
        ${error && html`<p class="bad" role="alert">${error}</p>`}
        <button type="submit" disabled=${busy}>${busy ? "…" : "Log in"}</button>
      </form>`;
  }
}

class App extends Component {
  state = { own: null, chosen: saved.read().members || null, interval: saved.read().interval ?? 1000,
            seen: new Map(), choosing: false, trouble: null, session: null, asked: null };
  round = 0;

  componentDidMount() {
    document.addEventListener("visibilitychange", () => document.hidden || this.restart());
    this.load();
  }

  async load() {
    try {
      const response = await fetch("config.json", { cache: "no-store" });
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      const { members } = await response.json();
      this.setState({ own: members, trouble: null }, () => this.restart());
    } catch (error) {
      this.setState({ trouble: `The list of members cannot be read: ${error.message}. Trying again …` });
      setTimeout(() => this.load(), 2000);
    }
  }

  get members() {
    return this.state.chosen || this.state.own || [];
  }

  /** Begins a new round of polling; loops of earlier rounds end by themselves. */
  restart() {
    this.round += 1;
    for (const member of this.members) this.poll(member, this.round);
  }

  async poll(member, round) {
    while (round === this.round && !document.hidden) {
      let answer;
      try {
        answer = { figures: await probe(member.base, this.state.session) };
      } catch (error) {
        const before = this.state.seen.get(member.base);
        answer = { why: error.message, at: before?.at ?? Date.now(), locked: error.wantsLogin };
      }
      if (round !== this.round) return;
      this.setState(({ seen, session, asked }) => {
        const now = new Map(seen).set(member.base, answer);
        const isLocked = [...now.values()].some((answer) => answer.locked);
        return { seen: now, asked: answer.locked ? { user: session?.user } : isLocked ? asked : null };
      });
      if (this.state.interval === 0) return;
      await new Promise((resolve) => setTimeout(resolve, this.state.interval));
    }
  }

  /** A member refused a call for want of a login. */
  locked = () => this.setState(({ session }) => ({ asked: { user: session?.user } }));

  /** Who calls from now on; `null`: nobody. What was answered to somebody else is forgotten. */
  become = (session) => {
    this.setState({ session, asked: null, seen: new Map() }, () => this.restart());
  };

  choose = (chosen) => {
    // What the server of this page reaches by itself is called through it.
    const known = (member) => this.state.own?.find((own) => own.address === member.address);
    const members = chosen?.map((member) => ({ ...member, base: known(member)?.base ?? member.base })) ?? null;
    saved.write({ members });
    this.setState({ chosen: members, choosing: false });
    // They may be another cluster's, whom the token is no business of.
    this.become(null);
  };

  setInterval = (event) => {
    const interval = Number(event.target.value);
    saved.write({ interval });
    this.setState({ interval }, () => this.restart());
  };

  render(_, { seen, interval, choosing, chosen, trouble, session, asked }) {
    const members = this.members;
    const commit = largest(members.map((member) => seen.get(member.base)?.figures?.commit ?? 0n));
    const { tone, text } = trouble ? { tone: "bad", text: trouble } : summary(members, seen);
    return html`
      <header class="top">
        <h1><img src="icon.svg" alt="" width="28" height="28" /> kvorum</h1>
        <p class="summary ${tone}" role="status">${text}</p>
        <label>refresh <select value=${interval} onChange=${this.setInterval}>
          ${INTERVALS.map(([name, value]) => html`<option value=${value} selected=${value === interval}>${name}</option>`)}
        </select></label>
        ${session && html`<p class="user">logged in as <strong>${session.user}</strong>
          <button type="button" onClick=${() => this.become(null)}>Log out</button></p>`}
        <button type="button" name="members" aria-expanded=${choosing} onClick=${() => this.setState({ choosing: !choosing })}>
          Members …
        </button>
      </header>
      ${choosing && html`<${Members} members=${members} isOwn=${!chosen} onChange=${this.choose}
        onClose=${() => this.setState({ choosing: false })} />`}
      ${asked && html`<${Login} user=${asked.user} bases=${members.map((member) => member.base)} onSession=${this.become} />`}
      <main>
        ${members.map((member) => html`
          <${Member} key=${member.base} member=${member} seen=${seen.get(member.base)} commit=${commit}
            session=${session} onLocked=${this.locked} />`)}
      </main>`;
  }
}

render(html`<${App} />`, document.body);
