"""The style sheet of a report."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --text: #24292f; --soft: #59636e; --line: #d8dee4;
  --note: #fff8e1; --note-line: #e0b64c; --bar: #1f6feb; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --text: #e0e6ec; --soft: #9aa5b1;
  --line: #353c45; --note: #2b2412; --note-line: #8a6d1d; --bar: #79b0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.5rem; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 36px 0 10px; }
h3 { font-size: 1rem; margin: 0 0 4px; overflow-wrap: anywhere; }
p { margin: 0 0 10px; }
.soft, figcaption { color: var(--soft); font-size: .87rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 14px; }
figure, .card { margin: 0; padding: 14px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  min-width: 0; }
figure img { display: block; width: 100%; height: auto; margin-bottom: 8px; }
.card + .card, .grid + .card, .card + .grid { margin-top: 14px; }
.note { background: var(--note); border-color: var(--note-line); }
.note ul { margin: 4px 0 0; padding-left: 20px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; }
th, td { padding: 4px 16px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.differs td { font-weight: 600; }
.bar { display: inline-block; height: .6em; background: var(--bar); border-radius: 2px; }
code { font-size: .93em; }
@media (max-width: 480px) { main { padding: 14px 10px 40px; } figure, .card { padding: 10px; }
  th, td { padding-right: 11px; } }
summary { cursor: pointer; color: var(--soft); font-size: .87rem; margin-top: 8px; }
"""
