# SPDX-License-Identifier: GPL-2.0
"""Bar charts, as SVG that needs nothing to be drawn with."""

from html import escape

NAMESPACE = "http://www.w3.org/2000/svg"
COLOURS = ("#9db7d5", "#e0b05c", "#2f6f4f", "#8c4a6b")
LEFT, WIDTH, BAR, GAP = 300, 560, 7, 8


def bars(path, title, labels, rows, limit=None):
    """
    Horizontal bars: rows {name: [ratio for each label]}, with a line at 1. What is longer than
    `limit` is cut, with its value beside it, as all values are.
    """
    limit = limit or min(3, 1.05 * max(max(values) for values in rows.values()))
    scale = WIDTH / limit
    group = BAR * len(labels) + GAP
    height = 70 + group * len(rows)
    out = [f'<svg xmlns="{NAMESPACE}" width="{LEFT + WIDTH + 90}" height="{height}" '
           'font-family="sans-serif" font-size="11">',
           "<!-- SPDX-License-Identifier: GPL-2.0 -->",
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="10" y="20" font-size="14">{escape(title)}</text>']
    for number, label in enumerate(labels):
        x = LEFT + 130 * number
        out.append(f'<rect x="{x}" y="32" width="10" height="10" fill="{COLOURS[number]}"/>'
                   f'<text x="{x + 15}" y="41">{escape(label)}</text>')
    y = 55
    for name, values in rows.items():
        out.append(f'<text x="{LEFT - 8}" y="{y + group / 2}" text-anchor="end">'
                   f'{escape(name)}</text>')
        for number, value in enumerate(values):
            width = min(value, limit) * scale
            out.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 1}" '
                       f'fill="{COLOURS[number]}"/>'
                       f'<text x="{LEFT + width + 3:.1f}" y="{y + BAR - 1}" font-size="7">'
                       f'{value:.3f}</text>')
            y += BAR
        y += GAP
    x = LEFT + scale
    out.append(f'<line x1="{x:.1f}" y1="50" x2="{x:.1f}" y2="{height - 12}" stroke="#333" '
               'stroke-dasharray="3,2"/>')
    path.write_text("\n".join([*out, "</svg>"]) + "\n")
