"""The page's style sheet: light and dark, wide and narrow, on a screen and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1b1f24; --soft: #57606a; --rule: #d5dae0;
  --grid: #d0d5db; --accent: #0a58a6; --tint: #eef3f9; --warn: #8a4b00; --warn-tint: #fff4e0;
  --heat-right: 31 119 180; --heat-wrong: 213 94 0;
  --line0: #0a58a6; --line1: #c24a00; --line2: #1a7f4b; --line3: #8b3fa8;
  --line4: #7a5c00; --line5: #b0235f; --line6: #006d77; --line7: #4b4f57;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1d2126; --ink: #e6e9ed; --soft: #a3acb8; --rule: #363d46;
    --grid: #454d58; --accent: #79b8ff; --tint: #232b35; --warn: #ffc46b; --warn-tint: #33291a;
    --heat-right: 88 166 235; --heat-wrong: 240 136 62;
    --line0: #79b8ff; --line1: #ff9f5a; --line2: #5fd39a; --line3: #d3a1f0;
    --line4: #e3c55b; --line5: #ff8bb8; --line6: #56cfd8; --line7: #c0c6cf;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main, header.top { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header.top { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 1.3rem; margin: 0 0 10px; line-height: 1.25; }
h3 { font-size: 1.05rem; margin: 26px 0 8px; }
p { margin: 6px 0 10px; max-width: 78ch; }
a { color: var(--accent); }
code, .hash { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .86em; }
.hash, .path, td, th, h2, li, figcaption { overflow-wrap: anywhere; }
.soft { color: var(--soft); }
nav ul {
  list-style: none; display: flex; flex-wrap: wrap; gap: 6px 18px; padding: 0; margin: 14px 0 0;
}
section {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 20px 22px; margin: 20px 0;
}
.scroll { overflow-x: auto; margin: 8px 0 4px; }
.scroll + .scroll { margin-top: 22px; }
.map figcaption { margin-top: 8px; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; font-weight: 600; padding: 0 0 6px; }
th, td {
  text-align: left; vertical-align: top; padding: 6px 12px 6px 0;
  border-bottom: 1px solid var(--rule);
}
thead th { color: var(--soft); font-weight: 600; font-size: .88rem; white-space: nowrap; }
tbody th { font-weight: 600; }
.wide { min-width: 1080px; }
.wide td { overflow-wrap: break-word; }
.wide .path, .wide .hash { overflow-wrap: anywhere; }
.middle { min-width: 540px; }
.nowrap { white-space: nowrap; }
.why { min-width: 270px; }
.table8 { min-width: 800px; table-layout: fixed; }
.table8 th:first-child { width: 96px; }
.table8 thead th { text-align: left; }
.table8 td { padding: 10px 14px 12px 0; }
.pair { font-size: 1.12rem; font-weight: 600; }
.small { font-size: .86rem; color: var(--soft); display: block; }
.ours {
  border-left: 3px solid var(--accent); background: var(--tint); padding: 6px 10px;
  margin-top: 8px;
  border-radius: 0 6px 6px 0; }
.missing {
  display: inline-block; border: 1px dashed var(--soft); border-radius: 6px; color: var(--soft);
  padding: 2px 10px; margin-top: 8px; font-style: italic; }
.notes {
  background: var(--warn-tint); border-left: 3px solid var(--warn); border-radius: 0 6px 6px 0;
  padding: 10px 14px 10px 32px; margin: 12px 0; }
.notes li { margin: 3px 0; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 10px;
  margin: 12px 0;
}
.tile { background: var(--tint); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.panels {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr));
  gap: 14px; margin: 10px 0;
}
.panels svg { width: 100%; height: auto; display: block; }
.confusion { width: auto; min-width: 0; }
.confusion td {
  text-align: center; min-width: 46px; padding: 6px 8px; border: 1px solid var(--rule);
}
.confusion th { padding: 6px 10px; max-width: 220px; }
.confusion thead th {
  white-space: normal; vertical-align: bottom; text-align: center; overflow-wrap: normal;
}
.confusion .upright { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 170px;
  text-align: left; font-size: .82rem; }
.confusion .count { font-weight: 600; }
.confusion .diagonal { outline: 2px solid var(--ink); outline-offset: -2px; }
.map { max-width: 660px; margin: 8px 0; }
.map img {
  width: 100%; aspect-ratio: 1; image-rendering: pixelated; border: 1px solid var(--rule);
  display: block;
}
.map .across { text-align: center; }
.columns {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 8px 34px;
}
.columns > * { min-width: 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 14px;
  list-style: none; padding: 0; margin: 10px 0; }
.gallery figure { margin: 0; }
.gallery img { width: 100%; display: block; border-radius: 6px; background: var(--tint); }
.gallery li { background: var(--tint); border-radius: 8px; padding: 10px; }
.gallery figcaption { font-size: .86rem; margin-top: 6px; }
.gallery figcaption > span { display: block; }
.nothing {
  border: 1px dashed var(--rule); border-radius: 6px; padding: 18px 10px; text-align: center;
  color: var(--soft); font-size: .82rem; }
@media (max-width: 600px) {
  main, header.top { padding-left: 10px; padding-right: 10px; }
  section { padding: 14px 12px; border-radius: 8px; }
  h1 { font-size: 1.4rem; }
  .map img { image-rendering: auto; }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
}
@media screen and (prefers-color-scheme: dark) {
  .map img { filter: brightness(1.6); }
}
@media print {
  .map img { filter: none; }
  :root { --page: #fff; --card: #fff; --ink: #000; }
  body { font-size: 10.5pt; }
  nav { display: none; }
  h2, h3, caption, thead { break-after: avoid; }
  svg, img { break-inside: avoid; }
  section { border: 0; padding: 0; margin: 14px 0; }
  .scroll { overflow: visible; }
  .wide, .middle, .table8 { min-width: 0; }
  tr, figure, .tile, .ours { break-inside: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
