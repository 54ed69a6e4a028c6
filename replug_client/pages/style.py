"""How pages look: dark or light as the reader's system is, or as the page's own switch says, from a phone upwards."""

_LIGHT = """color-scheme:light; --page:#f6f7f9; --card:#ffffff; --ink:#1b1f27; --soft:#5a6372; --rule:#dfe3e9;
  --s1:#0b62c4; --s2:#c2570c; --s3:#0d7d63; --s4:#8a4bbf; --s5:#a8870a; --s6:#8b93a1;
  --good:#0d7d63; --bad:#b3261e; --warn:#fff3dc; --warn-edge:#d98e04;"""
_DARK = """color-scheme:dark; --page:#12151b; --card:#1b2029; --ink:#e6e9ef; --soft:#a3acba; --rule:#323a47;
  --s1:#6cb2ff; --s2:#ffa45c; --s3:#4fd1a5; --s4:#c99bff; --s5:#e3c04d; --s6:#7d8797;
  --good:#4fd1a5; --bad:#ff8a80; --warn:#33291a; --warn-edge:#d98e04;"""

CSS = f"""
:root {{ {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {_DARK} }} }}
@media screen {{ :root[data-theme="dark"] {{ {_DARK} }} }}
"""

CSS += """
* { box-sizing: border-box; }
body { margin:0; background:var(--page); color:var(--ink); font:15px/1.5 system-ui, sans-serif; }
main { max-width:1180px; margin:0 auto; padding:20px 16px 60px; }
h1 { font-size:1.5rem; margin:0; overflow-wrap:anywhere; } h2 { font-size:1.15rem; margin:36px 0 4px; }
h3 { font-size:.95rem; margin:0; } p { margin:2px 0 12px; } p, .soft, figcaption p { color:var(--soft); }
.tiles, .grid, .pairs { display:grid; gap:14px; }
.tiles { grid-template-columns:repeat(auto-fit, minmax(min(170px, 100%), 1fr)); margin:18px 0; }
.grid { grid-template-columns:repeat(auto-fill, minmax(min(340px, 100%), 1fr)); }
.pairs { grid-template-columns:repeat(auto-fill, minmax(min(420px, 100%), 1fr)); }
.tile, figure, .card, .pair { background:var(--card); border:1px solid var(--rule); border-radius:10px; padding:14px;
  margin:0; min-width:0; }
.tile span { display:block; color:var(--soft); font-size:.85rem; } .tile b { font-size:1.3rem; overflow-wrap:anywhere; }
.tile .good { color:var(--good); } .tile .bad { color:var(--bad); }
figcaption p { font-size:.82rem; margin:0 0 6px; }
.legend { display:flex; flex-wrap:wrap; gap:2px 14px; font-size:.82rem; margin:4px 0; }
.key { display:inline-block; width:10px; height:10px; border-radius:3px; margin-right:5px; background:var(--own); }
.key.reference { height:0; border-top:2px dashed var(--soft); background:none; width:14px; vertical-align:middle; }
.s1 { --own:var(--s1); } .s2 { --own:var(--s2); } .s3 { --own:var(--s3); }
.s4 { --own:var(--s4); } .s5 { --own:var(--s5); } .s6 { --own:var(--s6); }
svg { width:100%; height:auto; display:block; } svg.shares { height:22px; border-radius:6px; margin:6px 0; }
svg text { fill:var(--soft); font-size:11px; } .tick.y { text-anchor:end; dominant-baseline:middle; }
.tick.x { text-anchor:middle; } line.grid { stroke:var(--rule); stroke-width:1; }
line.reference { stroke:var(--soft); stroke-width:1.3; stroke-dasharray:5 4; }
.line { fill:none; stroke:var(--own); stroke-width:1.8; stroke-linejoin:round; }
.band { fill:var(--own); opacity:.16; } .dot, svg.shares rect { fill:var(--own); }
.alarm { background:var(--warn); border-left:4px solid var(--warn-edge); border-radius:6px; padding:10px 14px;
  margin:8px 0; overflow-wrap:anywhere; }
.alarm b { display:block; font-size:.85rem; }
.scroll { overflow-x:auto; } table { border-collapse:collapse; font-size:.88rem; font-variant-numeric:tabular-nums; }
th, td { padding:4px 10px; text-align:right; border-bottom:1px solid var(--rule); white-space:nowrap; }
th { color:var(--soft); font-weight:600; } tbody th, thead th:first-child { text-align:left; }
tr.kept td, tr.kept th { font-weight:700; color:var(--good); }
.heat td { min-width:46px; background:color-mix(in srgb, var(--s1) calc(var(--v) * .7), transparent); }
.pair header { display:flex; flex-wrap:wrap; gap:4px 12px; align-items:baseline; } .pair header b { font-size:1.05rem; }
.likes { color:var(--good); } .dislikes { color:var(--bad); }
.pair dl { margin:8px 0 0; } .pair dt { font-size:.78rem; color:var(--soft); margin-top:6px; }
.pair dd { margin:0; font:.8rem/1.45 ui-monospace, monospace; white-space:pre-wrap; overflow-wrap:anywhere;
  unicode-bidi:isolate; }
details { margin-top:10px; } summary { cursor:pointer; } .settings td { text-align:left; white-space:normal;
  overflow-wrap:anywhere; } .settings th { vertical-align:top; }
footer { margin-top:40px; font-size:.82rem; color:var(--soft); }
"""
