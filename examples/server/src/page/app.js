// The page's life: figures come in as server-sent events, the operator's
// changes go out as POST requests with the token.
'use strict';

const byId = (id) => document.getElementById(id);
const POINTS = 240;
const HEADS = 1.2; // A bar ends a fifth beyond the limit.
const MIB = 1024 * 1024;
const NEWS_LINES = 60;
const MERGE_MS = 4000;

const mib = (bytes) => (bytes / MIB).toFixed(1);
const count = (n) => n.toLocaleString('en');

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// --- the figures -----------------------------------------------------------

let latest = null;
let past = []; // [[ms, [bytes of each tenant]], ...]
let stopped = []; // for each point, which tenants were stopped at it
const cards = new Map();

function list(dl, pairs) {
  while (dl.children.length > pairs.length) dl.lastElementChild.remove();
  pairs.forEach(([name, value, className], at) => {
    let pair = dl.children[at];
    if (!pair) {
      pair = element('div');
      pair.append(element('dt'), element('dd'));
      dl.append(pair);
    }
    setText(pair.firstChild, name);
    pair.lastChild.className = className || '';
    setText(pair.lastChild, value);
  });
}

function showWhole(state) {
  const whole = byId('whole');
  const share = (bytes) => `${(100 * bytes) / state.total}%`;
  const own = (tenant) => Math.max(0, tenant.charged - tenant.overdrawn);
  if (whole.children.length !== state.tenants.length + 2) {
    whole.replaceChildren(...state.tenants.map((_, at) => {
      const part = element('i');
      part.style.background = `var(--t${at % 4})`;
      return part;
    }), element('i', 'reserved'), element('i', 'headroom'));
    whole.lastChild.append(element('b'));
    byId('legend').replaceChildren(...state.tenants.map((tenant, at) => {
      const entry = element('li');
      const key = element('i');
      key.style.background = `var(--t${at % 4})`;
      entry.append(key, tenant.name);
      return entry;
    }), ...[['reserved', 'guaranteed, not used'], ['headroom', 'headroom, lent for moments']].map(([name, text]) => {
      const entry = element('li');
      entry.append(element('i', name), text);
      return entry;
    }));
  }
  let reserved = 0;
  state.tenants.forEach((tenant, at) => {
    whole.children[at].style.width = share(own(tenant));
    reserved += Math.max(0, tenant.guarantee - own(tenant));
  });
  const [reserve, headroom] = [whole.children[state.tenants.length], whole.lastChild];
  reserve.style.width = share(reserved);
  const lendable = state.total - state.usable;
  headroom.style.width = share(lendable);
  headroom.firstChild.style.width = `${Math.min(100, (100 * state.overdrawn) / lendable)}%`;
  byId('scale-usable').style.left = share(state.usable);
  setText(byId('scale-usable'), `limits end at ${mib(state.usable)} MiB`);
  setText(byId('scale-total'), `${mib(state.total)} MiB`);
  const parts = state.tenants.map((tenant) => `${tenant.name} ${mib(tenant.charged)}`);
  whole.setAttribute('aria-label', `of ${mib(state.total)} MiB: ${parts.join(', ')}`);
}

function showTiles(state) {
  const held = state.tenants.reduce((sum, tenant) => sum + tenant.charged, 0);
  const wrong = state.tenants.reduce((sum, tenant) => sum + tenant.wrong, 0);
  const answers = state.tenants.reduce((sum, tenant) => sum + tenant.answers, 0);
  list(byId('tiles'), [
    ['held by tenants', `${mib(held)} MiB`],
    ['lent from headroom', `${mib(state.overdrawn)} MiB`],
    ['server and page', `${mib(state.unattributed)} MiB`],
    ['resident / of it unknown', state.resident === null ? 'not known' : `${mib(state.resident)} / ${mib(state.resident_rest)}`],
    ['spilled to disk', `${mib(state.spilled)} MiB`],
    ['answers / wrong', `${count(answers)} / ${count(wrong)}`],
  ]);
}

function newCard(tenant, at) {
  const card = byId('card').content.firstElementChild.cloneNode(true);
  card.style.setProperty('--hue', `var(--t${at % 4})`);
  card.dataset.tenant = tenant.name;
  const title = `tenant-${tenant.name}`;
  card.querySelector('h3').id = title;
  card.setAttribute('aria-labelledby', title);
  card.querySelector('h3').textContent = tenant.name;
  card.querySelector('.what').textContent = tenant.what;
  card.querySelector('.meter').setAttribute('aria-label', `memory of ${tenant.name}`);
  byId('profile-tenant').append(element('option', '', tenant.name));
  const form = card.querySelector('form');
  form.setAttribute('aria-label', `change ${tenant.name}`);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    change(tenant.name, form);
  });
  byId('tenants').append(card);
  return card;
}

function mood(tenant, wasStopped) {
  if (wasStopped || tenant.overdrawn > 0) return ['stopped at its limit', 'over'];
  if (tenant.high > tenant.soft) return ['near its limit', 'soft'];
  return ['within its limit', ''];
}

function showTenant(tenant, at) {
  let card = cards.get(tenant.name);
  if (!card) {
    card = newCard(tenant, at);
    cards.set(tenant.name, card);
    fillForm(card, tenant);
  }
  const part = (name) => card.querySelector(name);
  setText(part('.tier'), tenant.tier);
  const [words, className] = mood(tenant, stopped.slice(-6).some((names) => names.has(tenant.name)));
  setText(part('.mood'), words);
  part('.mood').className = `mood ${className}`;
  setText(part('.charged'), `${mib(tenant.charged)} MiB`);
  setText(part('.max'), `${mib(tenant.max)} MiB`);
  const scale = (bytes) => `${Math.min(100, (100 * bytes) / (tenant.max * HEADS))}%`;
  part('.bar').style.width = scale(tenant.charged);
  part('.inner').style.width = scale(Math.min(tenant.used, tenant.charged));
  part('.guarantee').hidden = tenant.guarantee === 0;
  part('.guarantee').style.left = scale(tenant.guarantee);
  const meter = part('.meter');
  meter.setAttribute('aria-valuemax', tenant.max);
  meter.setAttribute('aria-valuenow', Math.min(tenant.charged, tenant.max));
  meter.setAttribute('aria-valuetext', `${mib(tenant.charged)} of ${mib(tenant.max)} MiB`);
  list(part('dl'), [
    ['live', mib(tenant.live)],
    ['in RAM', mib(tenant.used)],
    ['reserved', tenant.guarantee ? mib(tenant.guarantee) : 'none'],
    ['p99', `${(tenant.p99_us / 1000).toFixed(tenant.p99_us < 99500 ? 1 : 0)} ms`],
    ['answers', count(tenant.answers)],
    ['wrong', count(tenant.wrong), tenant.wrong ? 'bad' : ''],
    ['stopped', count(tenant.cancelled), tenant.cancelled ? 'bad' : ''],
    ['refused', count(tenant.refusals), tenant.refusals ? 'bad' : ''],
  ]);
  drawCurve(part('svg'), tenant, at);
}

function drawCurve(svg, tenant, at) {
  const first = POINTS - past.length;
  const height = (bytes) => 60 * (1 - Math.min(1, bytes / (tenant.max * HEADS)));
  const points = past.map(([, bytes], n) => `${first + n + 1},${height(bytes[at]).toFixed(2)}`);
  const stops = stopped.map((names, n) => (names.has(tenant.name) ? `M${first + n + 1},0V7` : ''));
  const line = points.length ? `M${points.join('L')}` : '';
  svg.querySelector('.line').setAttribute('d', line);
  svg.querySelector('.area').setAttribute('d', line && `${line}L${POINTS},60L${first + 1},60Z`);
  svg.querySelector('.stops').setAttribute('d', stops.join(''));
}

const RUNGS = {
  idle_blocks: ['Idle blocks', 'spilled to disk or thrown away, as the tier has it', 'block'],
  soft_limit_caches: ['Caches above their soft limit', 'asked to shrink', 'time asked'],
  borrower_caches: ['Caches of borrowers', 'from the lowest tier up, never below a guarantee', 'time asked'],
  purge: ['Free pages', 'from the allocator back to the system', 'time'],
  cancel: ['The worst borrower', 'its work is stopped at the next safe point', 'time'],
};
const rungs = new Map(); // name: [bytes and times, ms of the last change]

function showLadder(state) {
  const ladder = byId('ladder');
  setText(byId('pressure'), state.under_pressure ? 'Memory is short: taking back.' : 'There is enough at the moment.');
  byId('pressure').classList.toggle('short', state.under_pressure);
  while (ladder.children.length > state.rungs.length) ladder.lastElementChild.remove();
  state.rungs.forEach((rung, at) => {
    let item = ladder.children[at];
    if (!item) {
      item = element('li');
      item.append(element('span'), element('span', 'gave'), element('small'), element('small', 'when'));
      ladder.append(item);
    }
    const amounts = `${rung.bytes} ${rung.times}`;
    const before = rungs.get(rung.name);
    const changed = before !== undefined && before[0] !== amounts;
    const since = changed ? state.at_ms : before === undefined ? 0 : before[1];
    rungs.set(rung.name, [amounts, since]);
    const now = state.at_ms - since < 3000;
    item.className = now ? 'now' : '';
    const [name, what, unit] = RUNGS[rung.name] || [rung.name, '', 'time'];
    [name, `${mib(rung.bytes)} MiB`, what, `${now ? 'now, ' : ''}${count(rung.times)} ${rung.times === 1 ? unit : unit.replace(/^\w+/, '$&s')}`].forEach((text, n) => setText(item.children[n], text));
  });
}

function showTiers(state) {
  const rows = byId('tiers');
  while (rows.children.length > state.tiers.length) rows.lastElementChild.remove();
  state.tiers.forEach((tier, at) => {
    let row = rows.children[at];
    if (!row) {
      row = element('tr');
      const name = element('th');
      name.scope = 'row';
      row.append(name, ...[1, 2, 3].map(() => element('td', 'figure')));
      rows.append(row);
    }
    [tier.name, count(tier.tenants), mib(tier.charged), mib(tier.borrowed)].forEach((text, n) => setText(row.children[n], text));
  });
}

// --- what happens ------------------------------------------------------------

const WORDS = {
  refused: 'refused', cancelled: 'stopped', overdraft: 'lent', observed: 'observed', retired: 'removed', closed: 'gone',
  spill_failed: 'not spilled', reclaimed: 'took back', asked_to_stop: 'told to stop', reclaimer_panicked: 'crashed',
  reclaimer_late: 'too slow', pressure_began: 'short', pressure_ended: 'enough', infeasible: 'lent',
};
const LIMITS = {
  client: 'its own limit', tier: 'the limit of its tier', memory: 'the limit of the memory', request: 'its request budget',
};

function sentence(news) {
  const limit = LIMITS[news.node] || 'its limit';
  const held = `${mib(news.charged)} of ${mib(news.limit)} MiB`;
  switch (news.kind) {
    case 'refused': return `asked for ${mib(news.requested)} MiB more; ${limit}: ${held}`;
    case 'cancelled': return `over ${limit}: ${held}`;
    case 'overdraft': return `past ${limit}: headroom until the next safe point`;
    case 'reclaimed': return `gave back ${mib(news.requested)} MiB`;
    case 'pressure_began': return `${mib(news.requested)} MiB are wanted back`;
    case 'pressure_ended': return 'what was wanted is there again';
    case 'asked_to_stop': return `borrows most: ${held}`;
    case 'infeasible': return 'within its limit, and nobody below has as much to give';
    case 'spill_failed': return `a block of ${mib(news.requested)} MiB stays in memory`;
    default: return held;
  }
}

function showNews(all) {
  const feed = byId('news');
  for (const news of all) {
    const same = [...feed.children].slice(0, 6).find((line) => line.dataset.same === `${news.kind} ${news.tenant} ${news.node}` && news.at_ms - line.dataset.at < MERGE_MS);
    const times = (same ? Number(same.dataset.times) : 0) + news.times;
    const line = same || element('li');
    if (!same) {
      line.append(element('time'), element('span', `kind ${news.kind}`), element('span', 'text'));
      line.dataset.same = `${news.kind} ${news.tenant} ${news.node}`;
      line.dataset.at = news.at_ms;
      feed.prepend(line);
    }
    line.dataset.times = times;
    if (news.kind === 'reclaimed') news.requested += same ? Number(same.dataset.bytes) : 0;
    line.dataset.bytes = news.requested;
    setText(line.children[0], new Date(news.at_ms).toLocaleTimeString('en-GB'));
    setText(line.children[1], `${WORDS[news.kind] || news.kind}${times > 1 ? ` ×${times}` : ''}`);
    setText(line.children[2], (news.tenant ? `${news.tenant}: ` : 'the memory: ') + sentence(news));
  }
  while (feed.children.length > NEWS_LINES) feed.lastElementChild.remove();
  byId('no-news').hidden = feed.children.length > 0;
}

let announced = 0;

// Now and then, for those who hear the page.
function announce(state) {
  const loud = state.news.filter((news) => news.kind === 'cancelled' || news.kind === 'refused');
  if (loud.length && state.at_ms - announced > 15000) {
    announced = state.at_ms;
    const names = [...new Set(loud.map((news) => news.tenant))];
    byId('announce').textContent = `${names.join(' and ')}: stopped at the limit`;
  }
}

// --- the stream --------------------------------------------------------------

function show(state) {
  latest = state;
  past.push([state.at_ms, state.tenants.map((tenant) => tenant.high)]);
  stopped.push(new Set(state.news.filter((news) => news.kind === 'cancelled').map((news) => news.tenant)));
  past = past.slice(-POINTS);
  stopped = stopped.slice(-past.length);
  showNews(state.news);
  announce(state);
  if (document.hidden) return;
  showWhole(state);
  showTiles(state);
  state.tenants.forEach(showTenant);
  showLadder(state);
  showTiers(state);
  showSwitches(state);
}

function connected(live) {
  const connection = byId('connection');
  connection.classList.toggle('live', live);
  setText(connection, live ? 'live, twice a second' : 'connection lost, trying again');
}

const stream = new EventSource('/api/live');
stream.addEventListener('past', (event) => {
  const told = JSON.parse(event.data);
  past = told.points;
  stopped = past.map(() => new Set());
  byId('news').replaceChildren();
  showNews(told.news);
});
stream.addEventListener('state', (event) => show(JSON.parse(event.data)));
stream.addEventListener('open', () => connected(true));
stream.addEventListener('error', () => connected(false));

// --- the operator ----------------------------------------------------------------

// Of this tab, until it is closed.
const KEPT = 'operator-token';
let token = sessionStorage.getItem(KEPT) || '';

function tell(text, bad, where = 'told') {
  byId(where).textContent = text;
  byId(where).classList.toggle('bad', Boolean(bad));
}

// What is answered; null if it failed, which is told then.
async function ask(path, body, where) {
  const headers = { 'content-type': 'application/json' };
  const sent = token;
  if (sent) headers.authorization = `Bearer ${sent}`;
  let response;
  try {
    response = await fetch(path, { method: 'POST', headers, body: JSON.stringify(body) });
  } catch {
    tell('The server does not answer.', true, where);
    return null;
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  if (response.status === 401) {
    // Late: another token was given since.
    if (sent !== token) return null;
    logOut();
    tell('This needs the token that was printed where the server was started.', true);
    byId('token').focus();
  } else {
    tell(answer ? answer.error.message : `The server says ${response.status}.`, true, where);
  }
  return null;
}

const post = async (path, body, where) => (await ask(path, body, where)) !== null;

function showLogin() {
  byId('login').hidden = Boolean(token);
  byId('logged-in').hidden = !token;
  byId('profile-locked').hidden = Boolean(token);
  byId('profile-controls').hidden = !token;
  for (const form of document.querySelectorAll('form.change')) form.hidden = !token;
}

function logOut() {
  token = '';
  sessionStorage.removeItem(KEPT);
  showLogin();
}

function fillForm(card, tenant) {
  const form = card.querySelector('form');
  form.hidden = !token;
  form.elements.tier.value = tenant.tier;
  form.elements.max.value = tenant.own_max === null ? '' : tenant.own_max / MIB;
  form.elements.guarantee.value = tenant.own_guarantee === null ? '' : tenant.own_guarantee / MIB;
}

async function change(name, form) {
  const bytes = (field) => (field.value === '' ? null : Math.round(Number(field.value) * MIB));
  const path = `/api/tenants/${name}`;
  const limits = { max_bytes: bytes(form.elements.max), guarantee_bytes: bytes(form.elements.guarantee) };
  const done = (await post(`${path}/tier`, { tier: form.elements.tier.value })) && (await post(`${path}/limits`, limits));
  if (done) tell(`${name} is ${form.elements.tier.value} now.`);
}

function showSwitch(id, running, words) {
  byId(id).setAttribute('aria-pressed', String(running));
  setText(byId(id), words[Number(running)]);
}

function showSwitches(state) {
  showSwitch('profile', state.profiling, ['Start the profile', 'Stop the profile']);
  showSwitch('hostile', state.hostile, ['Start the hostile load', 'Stop the hostile load']);
  showSwitch('rush', state.rush, ['Start a rush', 'Stop the rush']);
}

function switchable(id, told) {
  byId(id).addEventListener('click', async () => {
    const running = byId(id).getAttribute('aria-pressed') !== 'true';
    if (!(await post(`/api/${id}`, { running }))) return;
    if (latest) showSwitches(Object.assign(latest, { [id]: running }));
    tell(told[Number(running)]);
  });
}

switchable('hostile', ['The hostile load has stopped.', 'The hostile load runs: watch mallory.']);
switchable('rush', ['The rush is over.', 'Everybody wants all it may have: watch what is taken back.']);

// --- the heap profile ------------------------------------------------------------

const PROFILE_TOLD = 'profile-told';

byId('profile').addEventListener('click', async () => {
  const running = byId('profile').getAttribute('aria-pressed') !== 'true';
  if (!(await post('/api/profile', { running }, PROFILE_TOLD))) return;
  if (latest) showSwitches(Object.assign(latest, { profiling: running }));
  tell(running ? 'The profile runs: what is allocated from now on shows.' : 'Stopped. What was noted shows until it is freed.', false, PROFILE_TOLD);
});

// An address that is good once: a tab and a download cannot send the token.
async function ticket(form) {
  const answer = await ask(`/api/profile/${form}/ticket`, { tenant: byId('profile-tenant').value || null }, PROFILE_TOLD);
  return answer && (await answer.json()).path;
}

function follow(path, attributes) {
  Object.assign(element('a'), { href: path, ...attributes }).click();
}

byId('flamegraph').addEventListener('click', async () => {
  const path = await ticket('flamegraph');
  if (!path) return;
  tell('The flame graph opens in a new tab. The first one takes some seconds.', false, PROFILE_TOLD);
  follow(path, { target: '_blank', rel: 'noopener' });
});

byId('pprof').addEventListener('click', async () => {
  const whose = byId('profile-tenant').value || 'everybody';
  const path = await ticket('pprof');
  if (!path) return;
  tell('The file comes as a download, for go tool pprof.', false, PROFILE_TOLD);
  follow(path, { download: `heap-${whose}.pb.gz` });
});

byId('login').addEventListener('submit', async (event) => {
  event.preventDefault();
  token = byId('token').value.trim();
  if (!(await post('/api/login', {}))) return;
  byId('token').value = '';
  sessionStorage.setItem(KEPT, token);
  showLogin();
  if (latest) latest.tenants.forEach((tenant) => fillForm(cards.get(tenant.name), tenant));
  tell('');
});

byId('logout').addEventListener('click', () => {
  logOut();
  tell('Logged out.');
});

byId('reclaim').addEventListener('click', async () => {
  if (await post('/api/reclaim', {})) tell('What was idle was taken back.');
});

showLogin();
