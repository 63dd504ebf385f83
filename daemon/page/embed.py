#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turns files into C: embed.py OUTPUT FILE...

The output defines page_files[], as http_page.h declares it.
"""

from __future__ import annotations

import sys
from pathlib import Path

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def main() -> int:
    output, files = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    lines = ['#include "http_page.h"', ""]
    table = []
    for number, file in enumerate(files):
        data = file.read_bytes()
        lines.append(f"static const unsigned char file_{number}[] = {{")
        lines += [", ".join(map(str, data[at : at + 24])) + "," for at in range(0, len(data), 24)]
        lines.append("};")
        path = "/" if file.name == "index.html" else f"/{file.name}"
        table.append(f'    {{"{path}", "{TYPES[file.suffix]}", file_{number}, sizeof(file_{number})}},')
    lines += ["", "const struct page_file page_files[] = {", *table, "    {0}};"]
    output.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
