"""Opens a page in a real browser and checks its layout."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path

# Unlike a window, a frame can be as narrow as a phone, and media queries use the frame's width. The script
# reports content that is wider than the window, outside its drawing or box, or on top of other text.
_FRAME = """<!doctype html><body><pre id="result">not measured</pre>
<iframe id="page" style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const inner = document.getElementById("page").contentDocument, found = [];
  if (inner.documentElement.scrollWidth > {width}) found.push("wider than the window");
  for (const svg of inner.querySelectorAll("main svg")) {{
    const frame = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((box, i) => {{
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 3)
        found.push("outside the drawing: " + texts[i].textContent);
      boxes.slice(i + 1).forEach((other, j) => {{
        if (box.left < other.right && other.left < box.right
            && box.top + 2 < other.bottom - 2 && other.top + 2 < box.bottom - 2)
          found.push("overlapping: " + texts[i].textContent + " / " + texts[i + 1 + j].textContent);
      }});
    }});
  }}
  for (const svg of inner.querySelectorAll(".card > svg"))
    for (const text of svg.querySelectorAll("text")) {{
      const box = text.getBoundingClientRect(), middle = box.left + 3;
      const around = [...svg.querySelectorAll(".box")].map(one => one.getBoundingClientRect())
        .find(one => one.left <= middle && middle <= one.right
          && one.top <= box.top + 4 && box.bottom <= one.bottom + 4);
      if (!around || box.right > around.right) found.push("outside its box: " + text.textContent);
    }}
  document.getElementById("result").textContent = ["measured", ...found].join("\\n") + "\\n";
}});
</script>"""


def layout_problems(chromium: str, page: str, width: int, folder: Path) -> list[str]:
    """The layout problems of some HTML in a window of this width in pixels, and the console messages.

    The browser writes its files to `folder`.
    """
    outer = folder / "outer.html"
    outer.write_text(_FRAME.format(width=width, page=html.escape(page)))
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--enable-logging=stderr", "--window-size=1400,900", f"--user-data-dir={folder / 'profile'}"),
            *("--dump-dom", outer.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    result = re.search(r'<pre id="result">measured\n(.*?)</pre>', done.stdout, re.DOTALL)
    assert result, done.stdout[-2000:]
    return [
        *(line for line in done.stderr.splitlines() if ":CONSOLE" in line),
        *html.unescape(result[1]).splitlines(),
    ]
