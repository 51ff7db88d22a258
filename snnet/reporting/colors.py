"""The colours of a report by role: CSS variables of the page, on light and dark screens, and colours of a PNG."""

# Words have a contrast of at least 4.5 to the paper, lines of series of at least 3.
LIGHT = {
    "paper": "#ffffff", "ink": "#1f2328", "muted": "#59636e", "grid": "#e3e6ea", "axis": "#8b949e",
    "quiet": "#8a95a5", "series-0": "#2467b0", "series-1": "#b1540a", "series-2": "#137a55",
    "series-3": "#7a4bb0", "right": "#137a55", "wrong": "#c0362c",
}  # fmt: skip
DARK = {
    "paper": "#16191d", "ink": "#e7e9ec", "muted": "#a8b1bc", "grid": "#2c3138", "axis": "#6f7882",
    "quiet": "#6b7686", "series-0": "#74aef5", "series-1": "#f0a161", "series-2": "#5cc8a0",
    "series-3": "#bf9df2", "right": "#5cc8a0", "wrong": "#ff8a80",
}  # fmt: skip
