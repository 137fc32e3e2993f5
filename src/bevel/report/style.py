"""The report's style sheet and its one script: sorting tables."""

# Contrast of text is at least 4.5:1 and of marks 3:1 on both grounds.
STYLE = """
:root { color-scheme: light dark;
  --ground: #fff; --text: #1a1d21; --soft: #f1f3f5; --dim: #565d66; --line: #d5d9de;
  --blue: #2266bb; --orange: #b35a00; --green: #1d7a3c; --red: #b3261e; --violet: #7a3fb0;
  --share: #2266bb2e; --band: #2266bb1a; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #15181c; --text: #e6e9ed; --soft: #20252b; --dim: #a5adb8; --line: #3a424c;
  --blue: #6aa9f4; --orange: #f0a35a; --green: #63c584; --red: #f2857d; --violet: #c295ee;
  --share: #6aa9f440; --band: #6aa9f426; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; background: var(--ground);
  color: var(--text); }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; }
.note, .tiles span, dt, caption { color: var(--dim); font-size: .87rem; } .note { margin: .3rem 0 .6rem; }
.warning { border-left: .25rem solid var(--red); background: var(--soft); padding: .5rem .8rem; }
dl { margin: 0; } dd { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tiles div, .flow li { background: var(--soft); border-radius: .4rem; padding: .5rem .8rem; overflow-wrap: anywhere; }
.tiles b { display: block; font-size: 1.15rem; }
.flow { list-style: none; display: flex; flex-wrap: wrap; gap: .7rem 1.5rem; margin: .6rem 0; padding: 0; }
.flow li { position: relative; flex: 1 1 9.6rem; font-size: .82rem; line-height: 1.35; }
.flow li:not(:last-child)::after { content: "\\2192"; position: absolute; right: -1.33rem; top: 50%; translate: 0 -50%;
  font-size: 1.1rem; color: var(--dim); }
.flow h3 { font-size: .82rem; margin: 0; color: var(--dim); font-weight: 600; } .flow b { display: block; font-size: 1.05rem; }
.scroll { overflow-x: auto; } :focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .82rem; }
caption { text-align: left; padding-bottom: .2rem; }
th, td { text-align: left; padding: .2rem .45rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-weight: normal; }
thead th { font-weight: 600; } .sortable thead th { padding: 0; } td.n, th.n, th.n button { text-align: right; }
td.wrap { white-space: normal; min-width: 16rem; }
th button { all: unset; box-sizing: border-box; width: 100%; padding: .2rem .45rem; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--blue); }
th button::after { content: "\\2195"; opacity: .45; padding-left: .25em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
th.name { max-width: 17rem; overflow: hidden; text-overflow: ellipsis; }
td.share { min-width: 4.5rem;
  background: linear-gradient(var(--share), var(--share)) no-repeat left center / calc(var(--w) * 1%) 70%; }
.far { color: var(--red); font-weight: 600; }
svg { display: block; width: 100%; height: auto; background: var(--soft); border-radius: .4rem; }
.wide svg { min-width: 46rem; } .square svg { max-width: 40rem; } .medium svg { max-width: 46rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--text); } svg text.dim { fill: var(--dim); }
svg text.in { font-size: 9px; pointer-events: none; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: .7rem; align-items: start; }
.grid { stroke: var(--line); } .even { stroke: var(--text); stroke-dasharray: 5 4; } .band { fill: var(--band); }
.bar { fill: var(--blue); fill-opacity: .4; stroke: var(--blue); stroke-width: .7; } .bar:hover { fill-opacity: .8; }
.live { fill: none; stroke: var(--orange); stroke-width: 1.6; }
.a { fill: var(--blue); stroke: var(--blue); } .b { fill: var(--orange); stroke: var(--orange); }
.c { fill: var(--green); stroke: var(--green); } .d { fill: var(--violet); stroke: var(--violet); }
.dot { fill-opacity: .55; } .dot:hover { fill-opacity: 1; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin: 0 .35em 0 .9em; background: var(--blue); }
.key.b { background: var(--orange); } .key.c { background: var(--green); } .key.d { background: var(--violet); }
@media (max-width: 40rem) { .tiles { grid-template-columns: 1fr 1fr; } .flow { flex-direction: column; gap: 1.5rem; }
  .square svg text, .medium svg text { font-size: 13px; } .flow li { flex: none; }
  .flow li:not(:last-child)::after { content: "\\2193"; right: 50%; top: auto; bottom: -1.55rem;
  translate: 50%; } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; } code { font-size: .9em; overflow-wrap: anywhere; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; } .scroll { overflow: visible; }
  h2 { break-after: avoid; } tr, .tiles div, .flow li, svg { break-inside: avoid; } thead { display: table-header-group; }
  th button::after { content: none; } .wide svg { min-width: 0; } * { print-color-adjust: exact; }
  table { font-size: 7.5pt; } th, td { padding: .1rem .25rem; } }
"""

# Numbers sort as numbers, and what has no value comes last either way. The report reads the same without it.
SCRIPT = """
document.querySelectorAll('table.sortable thead button').forEach(button => button.addEventListener('click', () => {
  const th = button.parentElement, column = th.cellIndex, body = th.closest('table').tBodies[0];
  const first = th.classList.contains('n') ? 'descending' : 'ascending';
  const other = first === 'descending' ? 'ascending' : 'descending';
  const order = th.getAttribute('aria-sort') === first ? other : first;
  th.parentElement.querySelectorAll('th').forEach(x => x.setAttribute('aria-sort', x === th ? order : 'none'));
  const key = row => { const c = row.cells[column], t = c.dataset.sort ?? c.textContent; return t === '' || isNaN(t) ? t : +t; };
  const compare = (a, b) => a === b ? 0 : a === '' ? 1 : b === '' ? -1 : (order === 'ascending' ? 1 : -1) *
    (typeof a === typeof b ? (a < b ? -1 : 1) : typeof a === 'string' ? 1 : -1);
  [...body.rows].sort((a, b) => compare(key(a), key(b))).forEach(row => body.append(row));
}));
"""
