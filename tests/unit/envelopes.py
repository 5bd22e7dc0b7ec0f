"""What tests of the flow send, and how they read what came of it."""

import base64


def image_item(content=b"picture", **fields):
    return {"data": base64.b64encode(content).decode(), **fields}


def texts(count):
    return [f"text {number}" for number in range(count)]


def errors_of(entries):
    return {index: entry.error_type for index, entry in entries.items() if entry.status == "error"}
