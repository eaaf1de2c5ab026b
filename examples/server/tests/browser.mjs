// The page in a real browser: it loads, it lives, and the operator's changes
// show. Takes screenshots on the way.
//
//   node browser.mjs SERVER CHROMIUM OUTPUT-DIRECTORY [PICTURE]
//
// SERVER is the program; PICTURE, if it is named, is where the picture of the
// README goes. Needs playwright-core where NODE_PATH says, which drives a
// browser that is there and brings none of its own.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const { chromium } = createRequire(import.meta.url)('playwright-core');
const [program, browserPath, output, picture] = process.argv.slice(2);
const ARGUMENTS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];

// What the server prints at start: its address and its token.
async function start() {
  const server = spawn(program, ['--port', '0', '--no-open'], { stdio: ['ignore', 'pipe', 'inherit'] });
  const found = {};
  for await (const line of createInterface({ input: server.stdout })) {
    found.address ??= line.match(/http:\S+/)?.[0];
    found.token ??= line.match(/token: +([0-9a-f]+)/)?.[1];
    if (found.address && found.token) break;
  }
  assert.ok(found.address && found.token, 'the server prints its address and its token');
  server.stdout.resume();
  return { server, ...found };
}

async function stop(server) {
  const ended = new Promise((resolve) => server.once('exit', (code) => resolve(code)));
  server.kill('SIGINT');
  assert.equal(await ended, 0, 'the server ends well at Ctrl-C');
}

const figure = (page, tenant, name) => page.evaluate(async ([tenant, name]) => {
  const state = await (await fetch('/api/state')).json();
  return state.tenants.find((one) => one.name === tenant)[name];
}, [tenant, name]);

const card = (tenant) => `[data-tenant=${tenant}]`;

async function becomes(page, what, selector, wanted) {
  await page.waitForFunction(([selector, wanted]) => document.querySelector(selector)?.textContent.includes(wanted), [selector, wanted], { timeout: 30000 })
    .catch(() => assert.fail(`${what}: ${selector} does not become ${wanted}`));
}

// Contrast of text with what is behind it, by the formula of WCAG.
function contrasts() {
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const part = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || node.closest('noscript, template') || !node.checkVisibility()) continue;
    const [a, b] = [light(channels(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return poor;
}

async function check(page, { address, token }) {
  const complaints = [];
  // Refused on purpose: no token, and a guarantee that does not fit.
  const expected = /40[19]/;
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !expected.test(message.text())) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(error.message));
  const elsewhere = [];
  page.on('request', (request) => {
    if (!request.url().startsWith(address)) elsewhere.push(request.url());
  });

  await page.goto(address);
  await becomes(page, 'the stream begins', '#connection', 'live');
  await page.waitForFunction(() => document.querySelectorAll('.card').length === 4);

  // It lives: figures change, and the curves grow.
  const answers = await figure(page, 'bank', 'answers');
  const curve = () => page.getAttribute(`${card('bank')} .line`, 'd');
  const before = await curve();
  await page.waitForFunction((before) => document.querySelector('[data-tenant=bank] .line').getAttribute('d') !== before, before);
  await page.waitForFunction(async (answers) => {
    const state = await (await fetch('/api/state')).json();
    return state.tenants[0].answers > answers;
  }, answers);

  // Without the token: refused, by the page and by the server.
  await page.click('#hostile');
  await becomes(page, 'a change without the token', '#told', 'token');
  const status = await page.evaluate(async () => (await fetch('/api/hostile', {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"running":true}',
  })).status);
  assert.equal(status, 401);
  await page.fill('#token', 'wrong');
  const turnedAway = page.waitForResponse((response) => response.url().endsWith('/api/login') && response.status() === 401);
  await page.keyboard.press('Enter');
  await turnedAway;
  await page.waitForFunction(() => document.activeElement.id === 'token' && document.querySelector('#told').classList.contains('bad'));
  assert.ok(await page.isHidden('#logged-in'));

  // With it, by the keyboard alone.
  await page.fill('#token', token);
  await page.keyboard.press('Enter');
  await page.waitForSelector('#logged-in', { state: 'visible' });
  assert.ok(!page.url().includes(token));
  await page.selectOption(`${card('shop')} select`, 'Premium');
  await page.fill(`${card('shop')} input[name=max]`, '33');
  await page.focus(`${card('shop')} button`);
  await page.keyboard.press('Space');
  await becomes(page, 'a tier', `${card('shop')} .tier`, 'Premium');
  await becomes(page, 'a limit', `${card('shop')} .max`, '33.0 MiB');
  await page.fill(`${card('shop')} input[name=guarantee]`, '34');
  await page.click(`${card('shop')} button`);
  await becomes(page, 'a guarantee above the limit', '#told', 'above the max');
  await page.fill(`${card('shop')} input[name=guarantee]`, '');
  await page.fill(`${card('shop')} input[name=max]`, '');
  await page.selectOption(`${card('shop')} select`, 'Basic');
  await page.click(`${card('shop')} button`);
  await becomes(page, 'the tier as it was', `${card('shop')} .tier`, 'Basic');

  // A heap profile: started by the keyboard, looked at in a tab, and saved.
  await page.focus('#profile');
  await page.keyboard.press('Space');
  await becomes(page, 'the profile starts', '#profile-told', 'runs');
  await page.waitForFunction(() => document.querySelector('#profile').getAttribute('aria-pressed') === 'true');
  await page.selectOption('#profile-tenant', 'bank');
  let noted;
  for (const begun = Date.now(); !noted;) {
    assert.ok(Date.now() - begun < 60000, 'the profile shows what bank has');
    const opened = page.context().waitForEvent('page');
    await page.focus('#flamegraph');
    await page.keyboard.press('Enter');
    const graph = await opened;
    const wrong = [];
    graph.on('console', (message) => { if (['error', 'warning'].includes(message.type())) wrong.push(message.text()); });
    graph.on('pageerror', (error) => wrong.push(error.message));
    await graph.waitForLoadState();
    assert.ok(!graph.url().includes(token));
    const own = graph.locator('#frames g', { hasText: 'tiered_allocator_server' });
    noted = (await own.count()) > 0;
    if (noted) {
      assert.ok((await graph.locator('#frames g', { hasText: 'bank (' }).count()) > 0);
      assert.equal(await graph.evaluate(() => self.origin), 'null', 'the flame graph has an origin of its own');
      // Its script runs: a click zooms.
      await own.last().click();
      await graph.waitForFunction(() => !document.querySelector('#unzoom').classList.contains('hide'));
      await graph.screenshot({ path: join(output, 'flamegraph.png') });
      // An empty one, which was too early, comes without its script and complains.
      assert.deepEqual(wrong, [], 'what the browser complains about in the flame graph');
    }
    await graph.close();
  }
  const saved = page.waitForEvent('download');
  await page.click('#pprof');
  assert.equal((await saved).suggestedFilename(), 'heap-bank.pb.gz');
  await page.click('#profile');
  await becomes(page, 'the profile stops', '#profile-told', 'Stopped');

  // The hostile load: stopped and refused, and only mallory.
  await page.click('#hostile');
  await becomes(page, 'the hostile load is stopped', '#news', 'stopped');
  await becomes(page, 'the hostile load is refused', '#news', 'refused');
  await page.waitForFunction(() => document.querySelector('[data-tenant=mallory] .stops').getAttribute('d') !== '');
  assert.ok((await figure(page, 'mallory', 'cancelled')) > 0);
  assert.equal(await page.getAttribute('#hostile', 'aria-pressed'), 'true');

  // A rush: memory is short, and caches are asked.
  await page.click('#rush');
  await becomes(page, 'memory is short', '#pressure', 'short');
  await page.waitForFunction(async () => {
    const state = await (await fetch('/api/state')).json();
    return state.rungs.some((rung) => rung.name.endsWith('caches') && rung.bytes > 0);
  });
  await becomes(page, 'caches give back', '#news', 'gave back');
  await page.click('#rush');
  for (const tenant of ['bank', 'press', 'shop']) {
    assert.equal(await figure(page, tenant, 'wrong'), 0, `wrong answers to ${tenant}`);
    assert.equal(await figure(page, tenant, 'refusals'), 0, `refusals of ${tenant}`);
  }

  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    assert.deepEqual(await page.evaluate(contrasts), [], `contrast, ${colorScheme}`);
    for (const [name, width, height] of [['wide', 1280, 900], ['phone', 375, 812]]) {
      await page.setViewportSize({ width, height });
      const widest = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(widest <= width, `${name} scrolls sideways: ${widest} of ${width}`);
      await page.screenshot({ path: join(output, `${name}-${colorScheme}.png`), fullPage: true });
    }
  }
  if (picture) {
    // With a minute behind it.
    await page.waitForFunction(() => document.querySelector('.line').getAttribute('d').split('L').length > 140, null, { timeout: 120000 });
    await page.click('#logout');
    await page.emulateMedia({ colorScheme: 'light' });
    await page.setViewportSize({ width: 1180, height: 1130 });
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: picture });
  }
  assert.deepEqual(complaints, [], 'what the browser complains about');
  assert.deepEqual(elsewhere, [], 'requests to elsewhere');
}

const profile = mkdtempSync(join(tmpdir(), 'tiered-browser-'));
const running = await start();
try {
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: browserPath, headless: true, args: ARGUMENTS, viewport: { width: 1280, height: 900 },
  });
  try {
    const page = context.pages()[0] ?? await context.newPage();
    page.setDefaultTimeout(30000);
    await check(page, running);
    // With the page still open: the stream does not keep the server.
    await stop(running.server);
    await becomes(page, 'the page notices the end', '#connection', 'lost');
  } finally {
    await context.close();
  }
} finally {
  running.server.kill('SIGKILL');
  rmSync(profile, { recursive: true, force: true });
}
console.log('the page works');
