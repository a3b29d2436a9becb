"""Durations in words."""


def in_words(seconds: float) -> str:
    """A number of seconds as hours and minutes, minutes and seconds, or seconds."""
    minutes, seconds_left = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    if minutes:
        return f"{minutes} min {seconds_left} s"
    return f"{seconds_left} s"
