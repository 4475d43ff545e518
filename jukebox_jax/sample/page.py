# ruff: noqa: E501
"""The text of ``index.html``: style, script and frame. ``report.py`` fills in the marks ``{{...}}``."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --back: #f6f5f1; --card: #ffffff; --ink: #1d1b22; --soft: #6c6875; --line: #e2dfd8;
  --accent: #b4325e; --accent-ink: #ffffff; --chip: #efece5; --code: #f0eee8; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --back: #131217; --card: #1c1a22; --ink: #eceaf1;
  --soft: #9d98a9; --line: #312e3a; --accent: #f0668f; --accent-ink: #1a0910; --chip: #2a2733; --code: #24212c; } }
:root[data-theme=dark] { color-scheme: dark; --back: #131217; --card: #1c1a22; --ink: #eceaf1; --soft: #9d98a9;
  --line: #312e3a; --accent: #f0668f; --accent-ink: #1a0910; --chip: #2a2733; --code: #24212c; }
:root[data-theme=light] { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main, body > header { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
body > header { padding-top: 36px; display: flex; gap: 16px; align-items: flex-start; }
body > header > div { flex: 1; min-width: 0; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0; letter-spacing: -.005em; }
p { margin: 0; } .soft { color: var(--soft); }
button { font: inherit; color: inherit; cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#theme { border: 1px solid var(--line); background: var(--card); border-radius: 999px; padding: 4px 14px; font-size: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; margin: 20px 0; padding: 20px; }
.item > header { display: flex; gap: 14px; align-items: center; margin-bottom: 14px; flex-wrap: wrap; }
.item > header > div { flex: 1; min-width: 200px; }
.play { width: 48px; height: 48px; flex: none; border: 0; border-radius: 50%; background: var(--accent);
  color: var(--accent-ink); display: grid; place-items: center; }
.play svg { width: 20px; height: 20px; fill: currentColor; }
.play .pause { display: none; } .playing .play .pause { display: block; } .playing .play .go { display: none; }
.clock { font-variant-numeric: tabular-nums; color: var(--soft); font-size: 14px; white-space: nowrap; }
.chips { display: flex; gap: 6px; flex-wrap: wrap; margin-top: 4px; }
.chips span { background: var(--chip); border-radius: 999px; padding: 1px 10px; font-size: 13px; color: var(--soft); }
.level { display: grid; grid-template-columns: 118px 1fr; gap: 12px; align-items: stretch; margin-top: 8px; }
.level > button { text-align: left; border: 1px solid var(--line); background: none; border-radius: 10px; padding: 8px 12px;
  line-height: 1.3; font-size: 15px; } .level > button small { color: var(--soft); display: block; font-size: 12px; }
.level[data-on] > button { border-color: var(--accent); box-shadow: inset 3px 0 0 var(--accent); }
.view { position: relative; height: 92px; border-radius: 10px; overflow: hidden; background: #000; cursor: crosshair;
  touch-action: none; } .level:not([data-on]) .view:not(:hover) img { filter: saturate(.55) brightness(.72); }
.view img { width: 100%; height: 100%; display: block; image-rendering: auto; }
.view i { position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; left: 0; pointer-events: none;
  box-shadow: 0 0 6px #000; } .level:not([data-on]) .view i { opacity: .4; }
.lyrics { margin: 18px 0 0; padding: 14px 16px; border-radius: 10px; background: var(--chip); white-space: pre-wrap;
  max-height: 260px; overflow: auto; font-size: 17px; line-height: 1.7; }
.lyrics b { font-weight: inherit; border-radius: 3px; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); font-size: 14px; }
details img { width: 100%; height: 260px; image-rendering: pixelated; background: #000; border-radius: 10px; margin-top: 8px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 15px; white-space: nowrap; }
th { text-align: right; color: var(--soft); font-weight: 500; font-size: 13px; padding: 2px 12px 6px; }
td { text-align: right; padding: 6px 12px; border-top: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
pre { background: var(--code); border-radius: 10px; padding: 12px 14px; overflow: auto; font-size: 13px; margin: 12px 0 0;
  white-space: pre-wrap; word-break: break-word; }
footer { max-width: 1080px; margin: 0 auto; padding: 4px 20px 40px; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) { .level { grid-template-columns: 1fr; gap: 4px; } .card { padding: 14px; } }
"""

SCRIPT = """
const clock = s => Math.floor(s / 60) + ':' + String(Math.floor(s % 60)).padStart(2, '0');
const root = document.documentElement;
document.getElementById('theme').onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme == 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
};
const items = [...document.querySelectorAll('.item')].map(card => {
  const levels = [...card.querySelectorAll('.level')];
  const audio = levels.map(level => level.querySelector('audio'));
  const face = card.querySelector('.clock'), lyrics = card.querySelector('.lyrics[data-map]');
  const length = +card.dataset.seconds;
  let now = 0, heat = null;
  const item = {card, pause() { audio[now].pause(); }};
  const at = () => audio[now].currentTime;
  function show() {
    const share = Math.min(1, at() / length);
    levels.forEach(level => level.querySelector('i').style.left = `calc(${100 * share}% - ${2 * share}px)`);
    face.textContent = clock(at()) + ' / ' + clock(Math.round(length));
    if (heat) glow(share);
  }
  function glow(share) {
    const row = Math.min(heat.rows - 1, Math.floor(share * heat.rows)) * heat.count;
    let best = 0, peak = 0;
    for (let i = 0; i < heat.count; i++) {
      const value = heat.values[row + i];
      if (value > peak) { peak = value; best = i; }
      if (heat.seen[i] == value) continue;
      heat.seen[i] = value;
      const strength = Math.min(100, Math.round(value / 1.6));
      heat.letters[i].style.background = strength > 2 ? `color-mix(in srgb, var(--accent) ${strength}%, transparent)` : '';
    }
    if (peak > 8 && share > 0) {
      const top = heat.letters[best].offsetTop - lyrics.offsetTop - lyrics.clientHeight / 2;
      if (Math.abs(top - lyrics.scrollTop) > lyrics.clientHeight / 3) lyrics.scrollTop = top;
    }
  }
  function frame() { show(); if (!audio[now].paused) requestAnimationFrame(frame); }
  function choose(index) {
    const time = at(), was = !audio[now].paused;
    if (index != now) { audio[now].pause(); now = index; audio[now].currentTime = time; if (was) audio[now].play(); }
    levels.forEach((level, i) => {
      level.toggleAttribute('data-on', i == now);
      level.querySelector('button').setAttribute('aria-pressed', i == now);
    });
    show();
  }
  function seek(seconds) { audio[now].currentTime = Math.max(0, Math.min(length - .01, seconds)); show(); }
  levels.forEach((level, index) => {
    level.querySelector('button').onclick = () => choose(index);
    const view = level.querySelector('.view');
    const move = event => {
      const box = view.getBoundingClientRect();
      seek((event.clientX - box.left) / box.width * length);
    };
    view.onpointerdown = event => { choose(index); move(event); view.setPointerCapture(event.pointerId); };
    view.onpointermove = event => { if (view.hasPointerCapture(event.pointerId)) move(event); };
    audio[index].onplay = () => { items.forEach(o => o != item && o.pause()); card.classList.add('playing'); frame(); };
    audio[index].onpause = () => { if (audio.every(a => a.paused)) card.classList.remove('playing'); show(); };
    audio[index].onseeked = show;
  });
  const toggle = () => audio[now].paused ? audio[now].play() : audio[now].pause();
  card.querySelector('.play').onclick = toggle;
  card.onkeydown = event => {
    if (event.key == 'ArrowLeft' || event.key == 'ArrowRight') {
      seek(at() + (event.key == 'ArrowLeft' ? -5 : 5)); event.preventDefault();
    }
  };
  if (lyrics) {
    const picture = new Image();
    picture.onload = () => {
      const canvas = Object.assign(document.createElement('canvas'), {width: picture.width, height: picture.height});
      const context = canvas.getContext('2d'); context.drawImage(picture, 0, 0);
      const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
      const letters = [...lyrics.textContent].map(c => Object.assign(document.createElement('b'), {textContent: c}));
      lyrics.replaceChildren(...letters);
      const count = Math.min(picture.width, letters.length), values = new Uint8Array(picture.height * count);
      for (let y = 0; y < picture.height; y++)
        for (let x = 0; x < count; x++) values[y * count + x] = pixels[4 * (y * picture.width + x)];
      heat = {letters, values, count, rows: picture.height, seen: new Uint8Array(count)};
      show();
    };
    picture.src = card.querySelector('img.map').src;
  }
  choose(0);
  return item;
});
"""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{title}}</title>
<link rel="icon" href="data:,">
<style>{{style}}</style>
</head>
<body>
<header>
<div><h1>{{title}}</h1><p class="soft">{{summary}}</p></div>
<button id="theme" type="button" aria-label="Switch between light and dark">light / dark</button>
</header>
<main>
"""

ITEM_HEAD = """<article class="card item" data-seconds="{{seconds}}">
<header>
<button class="play" type="button" aria-label="Play or pause item {{number}}">
<svg viewBox="0 0 20 20" aria-hidden="true"><path class="go" d="M5 2.5v15l12.5-7.5z"/><path class="pause" d="M4 2.5h4.2v15H4zM11.8 2.5H16v15h-4.2z"/></svg>
</button>
<div><h2>{{title}}</h2><div class="chips">{{chips}}</div></div>
<span class="clock"></span>
</header>
"""

LEVEL = """<div class="level">
<button type="button" aria-pressed="false">level {{level}}<small>{{note}}</small></button>
<div class="view"><img alt="mel spectrogram of item {{number}}, level {{level}}" src="{{picture}}"><i></i></div>
<audio preload="auto" src="{{audio}}"></audio>
</div>
"""

TAIL = """</main>
<footer>{{footer}}</footer>
<script>{{script}}</script>
</body>
</html>
"""
