"""The template of the page: HTML, style and SVG in one, without a script."""

TEMPLATE = """\
{% macro frame(plot, x_title, y_title) %}
<g class="grid">
{% for x, label in plot.x_ticks %}
<line x1="{{ x }}" x2="{{ x }}" y1="{{ plot.top }}" y2="{{ plot.y_end }}"/>
<text x="{{ x }}" y="{{ plot.y_end + 17 }}" text-anchor="middle">{{ label }}</text>
{% endfor %}
{% for y, label in plot.y_ticks %}
<line x1="{{ plot.left }}" x2="{{ plot.x_end }}" y1="{{ y }}" y2="{{ y }}"/>
<text x="{{ plot.left - 7 }}" y="{{ y + 4 }}" text-anchor="end">{{ label }}</text>
{% endfor %}
<text x="{{ (plot.left + plot.x_end) / 2 }}" y="{{ plot.height - 8 }}"
 text-anchor="middle">{{ x_title }}</text>
<text x="12" y="{{ (plot.top + plot.y_end) / 2 }}" text-anchor="middle"
 transform="rotate(-90 12 {{ (plot.top + plot.y_end) / 2 }})">{{ y_title }}</text>
</g>
{% endmacro %}
{% macro change(before, after) %}
<td>{{ before | precise }} → {{ after | precise }}</td>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>Calibration report</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff;
  max-width: 1080px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 34px 0 6px; }
h3 { font-size: 15px; margin: 0; font-weight: 600; }
p { margin: 4px 0 10px; max-width: 76ch; }
.quiet { color: #59636e; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.figures div { border: 1px solid #d1d9e0; border-radius: 6px; padding: 10px 16px; }
.figures b { display: block; font-size: 23px; font-weight: 600; }
.promise { border-left: 4px solid #15803d; background: #f0fdf4; padding: 8px 14px; }
.promise.none { border-color: #c2410c; background: #fff7ed; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e5e9ee; }
th:first-child, td:first-child { text-align: left; }
td:first-child { max-width: 260px; overflow: hidden; text-overflow: ellipsis; }
tr.chosen td { font-weight: 600; background: #f0fdf4; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: #1f2328; }
.label { paint-order: stroke; stroke: #fff; stroke-width: 3px; }
.grid line { stroke: #e5e9ee; } .grid text { fill: #59636e; }
.curve { fill: none; stroke: #0b62a8; stroke-width: 2; }
.exit { fill: #fff; stroke: #59636e; stroke-width: 2; }
.full { fill: #1f2328; } .baseline { fill: #7c3aed; } .dynamic { fill: #c2410c; }
.diagrams { display: flex; flex-wrap: wrap; gap: 20px; }
.diagonal { stroke: #9aa4af; stroke-dasharray: 4 4; fill: none; }
.before { fill: none; stroke: #9aa4af; } circle.before { fill: #9aa4af; }
.after { fill: none; stroke: #0b62a8; stroke-width: 2; }
circle.after { fill: #0b62a8; }
</style>
</head>
<body>
<h1>Calibration report</h1>
<p class="quiet">{{ "{:,}".format(report.num_samples) }} samples, rule
 {{ report.rule }}, {{ goal or "no goal" }}.</p>
<div class="figures">
<div>full network <b>{{ report.final_accuracy | percent }}</b> accuracy</div>
<div>dynamic network <b>{{ report.dynamic_accuracy | percent }}</b> accuracy</div>
<div>mean cost <b>{{ report.mean_cost | number }}</b> of the plain network</div>
</div>

{% if report.certificate is not none %}
{% set c = report.certificate %}
<div class="promise{{ ' none' if uncertified }}">
{% if uncertified %}
<p>{{ uncertified }}</p>
{% else %}
<p><b>Certified with a confidence of {{ c.confidence | confidence }}:</b> of new
 samples, at most {{ c.max_risk | percent }} are answered rightly by the full network
 and wrongly by the dynamic one. Here they are {{ "{:,}".format(c.step.num_lost) }} of
 {{ "{:,}".format(c.num_samples) }}, p = {{ "{:.2g}".format(c.p_value) }}.</p>
{% endif %}
<p class="quiet">Temperatures and path come from
 {{ "{:,}".format(c.num_selection_samples) }} samples, tests and the figures of this
 page from {{ "{:,}".format(c.num_samples) }} others (split at random, seed
 {{ c.seed }}).</p>
</div>
{% endif %}

<h2>Accuracy and cost</h2>
<p class="quiet">{% if trade_off.curve %}The line: the best thresholds on these samples
 for every cost, chosen in hindsight. {% endif %}Rings: one exit for everyone, heads
 passed included.</p>
{% set plot = trade_off.plot %}
<svg viewBox="0 0 {{ plot.width }} {{ plot.height }}" width="{{ plot.width }}"
 role="img" aria-label="accuracy against cost">
{{ frame(plot, "mean cost (1 = the plain network)", "accuracy") }}
<polyline class="curve" points="{{ trade_off.curve }}"/>
{% for point in trade_off.points %}
<circle class="{{ point.kind }}" cx="{{ point.x }}" cy="{{ point.y }}"
 r="{{ 7 if point.kind == 'dynamic' else 5 }}"><title>{{ point.name }}: cost
 {{ point.cost | number }}, accuracy {{ point.accuracy | percent }}</title></circle>
<text class="label" x="{{ point.label_x }}" y="{{ point.label_y }}"
 text-anchor="{{ point.anchor }}">{{ point.name }}</text>
{% endfor %}
</svg>

<h2>Exits</h2>
<svg viewBox="0 0 760 {{ 26 * bars | length + 4 }}" width="760" role="img"
 aria-label="share of samples that leave at each exit">
{% for bar in bars %}
<text x="150" y="{{ bar.y + 17 }}"
 text-anchor="end">{{ bar.name | truncate(22) }}</text>
<rect x="160" y="{{ bar.y + 3 }}" width="{{ bar.width }}" height="20"
 fill="{{ bar.color }}"/>
<text x="{{ 168 + bar.width }}" y="{{ bar.y + 17 }}">{{ bar.rate | percent }}</text>
{% endfor %}
</svg>
<div class="scroll"><table>
<tr><th>exit</th><th>threshold</th><th>cost</th><th>leave</th>
<th>accuracy, all</th><th>accuracy, leavers</th><th>spoiled later</th></tr>
{% for exit in report.exits %}
<tr><td title="{{ exit.name }}">{{ exit.name }}</td>
<td>{{ "–" if loop.last else exit.threshold | short }}</td>
<td>{{ exit.relative_cost | number }}</td><td>{{ exit.exit_rate | percent }}</td>
<td>{{ exit.accuracy | percent }}</td><td>{{ exit.accuracy_of_leavers | percent }}</td>
<td>{{ "–" if loop.last else exit.spoiled | percent }}</td></tr>
{% endfor %}
</table></div>
<p class="quiet">Spoiled later: the share of all samples that are right at this exit
 and that some later exit, the final one or one between, would have answered
 wrongly.</p>

<h2>Probabilities</h2>
<p class="quiet">Accuracy against confidence in bins of equally many samples, all that
 there are, before (gray) and after (blue) temperature. On the diagonal they are
 honest.</p>
<div class="diagrams">
{% for diagram in diagrams %}
{% set plot = diagram.plot %}
<div><h3>{{ diagram.name }}</h3>
<div class="quiet">T = {{ diagram.temperature | number }}</div>
<svg viewBox="0 0 {{ plot.width }} {{ plot.height }}" width="{{ plot.width }}"
 role="img" aria-label="reliability of {{ diagram.name }}">
{{ frame(plot, "confidence", "accuracy") }}
<polyline class="diagonal" points="{{ diagram.diagonal }}"/>
{% for kind in ("before", "after") %}
<polyline class="{{ kind }}" points="{{ diagram[kind ~ '_line'] }}"/>
{% for x, y, count in diagram[kind] %}
<circle class="{{ kind }}" cx="{{ x }}" cy="{{ y }}" r="3"><title>{{ count }} samples
</title></circle>
{% endfor %}
{% endfor %}
</svg></div>
{% endfor %}
</div>
<div class="scroll"><table>
<tr><th>exit, on all samples</th><th>calibration error</th>
<th>log-likelihood, negative</th><th>Brier score</th></tr>
{% for exit in report.exits %}
{% set old, new = exit.all_before, exit.all_after %}
<tr><td title="{{ exit.name }}">{{ exit.name }}</td>
{{ change(old.expected_calibration_error, new.expected_calibration_error) }}
{{ change(old.negative_log_likelihood, new.negative_log_likelihood) }}
{{ change(old.brier_score, new.brier_score) }}</tr>
{% endfor %}
</table></div>

{% if report.certificate is not none and report.certificate.path %}
<h2>Path tested</h2>
<p class="quiet">From the safest thresholds on, until a test fails. p: the probability
 of as few losses, if more than {{ "{:g}".format(report.certificate.max_risk) }} were
 lost.</p>
<div class="scroll"><table>
<tr><th>step</th><th>thresholds</th><th>mean cost</th><th>lost</th><th>p</th></tr>
{% for step in report.certificate.path %}
<tr{% if loop.index0 == report.certificate.chosen %} class="chosen"{% endif %}>
<td>{{ loop.index }}</td><td>
{% for value in step.thresholds %}
{{ value | short }}{{ "" if loop.last else ", " }}
{% endfor %}
</td><td>{{ step.mean_cost | number }}</td>
<td>{{ step.num_lost }}</td>
<td>{{ "not tested" if step.p_value is none else "{:.2g}".format(step.p_value) }}</td>
</tr>
{% endfor %}
</table></div>
{% endif %}
</body>
</html>
"""
