// One member as the page calls it: what is asked, and what the answers mean.

/** A member that has not answered for so long counts as down, in ms. */
const PROBE_TIMEOUT = 2000;
/** How long a Get, Set or Del may take, in ms; the member itself gives up earlier and says why. */
const CALL_TIMEOUT = 10000;
/** How a member says that it knows the caller, who may not. */
const DENIED = "etcdserver: permission denied";

/**
 * Calls the member at `base`, as `session.user` if there is a session. Rejects with an `Error` whose message can be
 * shown; its `status` is the answer's, its `wantsLogin` says that another login may help.
 */
async function call(base, path, options, timeout, session) {
  const headers = { ...options.headers, ...(session && { Authorization: `Bearer ${session.token}` }) };
  let response;
  try {
    response = await fetch(base + path, { ...options, headers, cache: "no-store", signal: AbortSignal.timeout(timeout) });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Error(late ? `no answer within ${timeout / 1000} s` : "cannot be reached");
  }
  const text = await response.text();
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // Not JSON: a proxy or another program answered; its words are shown as they are.
  }
  if (!response.ok) {
    const denied = response.status === 403 && body?.message === DENIED;
    const error = new Error(denied ? `${session?.user || "nobody"} has no permission for this`
      : body?.message || text.trim() || `HTTP ${response.status}`);
    error.status = response.status;
    error.wantsLogin = response.status === 401;
    throw error;
  }
  if (body === null) throw new Error("what answers there is no member of a cluster");
  return body;
}

/** The figures of a member: term, indexes as `BigInt`, state, and its own name and the leader's. */
export async function probe(base, session) {
  const [info, status] = await Promise.all([
    call(base, "/raft/info", {}, PROBE_TIMEOUT, session),
    call(base, "/status", {}, PROBE_TIMEOUT, session),
  ]);
  return {
    name: status.node_id,
    leader: status.leader_id,
    state: info.state,
    term: BigInt(info.term),
    commit: BigInt(info.commitIndex),
    applied: BigInt(info.lastApplied),
    lastIndex: BigInt(info.lastLogIndex),
    lastTerm: BigInt(info.lastLogTerm),
  };
}

/** Reads a key; `null` where there is none. */
export async function get(base, key, session) {
  try {
    return (await call(base, `/kv/${encodeURIComponent(key)}`, {}, CALL_TIMEOUT, session)).value;
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Writes a key. */
export async function set(base, key, value, session) {
  const body = JSON.stringify({ key, value });
  const headers = { "Content-Type": "application/json" };
  await call(base, "/kv", { method: "POST", headers, body }, CALL_TIMEOUT, session);
}

/** Deletes a key, whether it is there or not. */
export async function del(base, key, session) {
  await call(base, `/kv/${encodeURIComponent(key)}`, { method: "DELETE" }, CALL_TIMEOUT, session);
}

/**
 * Logs in at the first of these members that answers: a session, which every member of the cluster takes; `null` where
 * nobody has to log in.
 */
export async function logIn(bases, name, password) {
  const body = JSON.stringify({ name, password });
  let last = new Error("there is no member to log in at");
  for (const base of bases) {
    try {
      const headers = { "Content-Type": "application/json" };
      const answer = await call(base, "/v3/auth/authenticate", { method: "POST", headers, body }, CALL_TIMEOUT);
      return { user: name, token: answer.token };
    } catch (error) {
      if (error.message.includes("authentication is not enabled")) return null;
      if (error.message.includes("authentication failed")) throw new Error("wrong user or password");
      // Of refusals the others have no other opinion.
      if (error.status >= 400 && error.status < 500) throw error;
      last = error;
    }
  }
  throw last;
}

/** Members from lines `URL` or `NAME=URL`; throws an `Error` that names the bad line. */
export function parseMembers(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (lines.length === 0) throw new Error("give at least one member");
  return lines.map((line) => {
    const [, name, address] = line.match(/^(?:([^=/]+)=)?(.*)$/);
    const url = address.includes("://") ? address : `http://${address}`;
    let parsed;
    try {
      parsed = new URL(url);
    } catch {
      throw new Error(`“${line}” is not an address such as 127.0.0.1:7401`);
    }
    if (!["http:", "https:"].includes(parsed.protocol)) throw new Error(`“${line}” is neither http nor https`);
    return { name: name || parsed.host, address: parsed.host, base: parsed.origin };
  });
}
