"""A server on 127.0.0.1 that answers like the one that data-prep/fetch asks, and misbehaves on request.

fetch_server.py ROOT PORT_FILE CUT
  ROOT/models/NAME/..., ROOT/datasets/NAME/...: the files; ROOT/lie: paths (one a line) whose hash is listed wrong
  CUT: connections are dropped after so many bytes of a file (0: never)
Byte ranges are understood unless ROOT/no-ranges is there. ROOT/log gets a line a request: path, first byte, status.
"""
import hashlib
import http.server
import json
import os
import sys

ROOT, PORT_FILE, CUT = sys.argv[1], sys.argv[2], int(sys.argv[3])


def listed_wrong(path):
    try:
        return path in open(os.path.join(ROOT, "lie")).read().split()
    except FileNotFoundError:
        return False


def entry(folder, path):
    data = open(os.path.join(folder, path), "rb").read()
    result = {"type": "file", "path": path, "size": len(data)}
    result["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if len(data) > 10000:
        result["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    if listed_wrong(path):
        result.get("lfs", result)["oid"] = "0" * 40
    return result


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def note(self, first, status):
        with open(os.path.join(ROOT, "log"), "a") as log:
            print(self.path, first, status, file=log)

    def fail(self, status):
        self.note(0, status)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        parts = self.path.strip("/").split("/")
        if parts[0] == "api":
            folder = os.path.join(ROOT, *parts[1:4])
            under = "/".join(parts[6:])
            if not os.path.isdir(os.path.join(folder, under)):
                return self.fail(404)
            names = sorted(os.listdir(os.path.join(folder, under)))
            body = json.dumps([entry(folder, os.path.join(under, name)) if os.path.isfile(os.path.join(folder, under, name))
                               else {"type": "directory", "path": name, "oid": "0", "size": 0} for name in names]).encode()
            return self.send(body, 0, cut=0)
        kind = [] if parts[0] == "datasets" else ["models"]
        repository, path = kind + parts[: parts.index("resolve")], parts[parts.index("resolve") + 2 :]
        try:
            body = open(os.path.join(ROOT, *repository, *path), "rb").read()
        except FileNotFoundError:
            return self.fail(404)
        first = 0
        if "Range" in self.headers and not os.path.exists(os.path.join(ROOT, "no-ranges")):
            first = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            if first >= len(body):
                return self.fail(416)
        return self.send(body, first, CUT)

    def send(self, body, first, cut):
        self.note(first, 206 if first else 200)
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(body[first : first + cut] if cut else body[first:])
        if cut and len(body) - first > cut:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):  # a client that has what it wanted and leaves
        pass


server = Server(("127.0.0.1", 0), Handler)
with open(PORT_FILE + ".tmp", "w") as port:
    port.write(str(server.server_address[1]))
os.replace(PORT_FILE + ".tmp", PORT_FILE)
server.serve_forever()
