"""Load on hookward while somebody restarts it: run beside it, until a file appears; then what came of it.

    restarts.py PORT SECRET STOP_FILE

Half of the senders open a connection for each request, half keep theirs for as long as they are let.
Prints {"sent": N, "failed": {what: how often}}.
"""

import collections
import hashlib
import hmac
import http.client
import json
import pathlib
import sys
import threading

SENDERS = 6
MOST_REQUESTS_EACH = 100_000


def send(sender, port, secret, stop, counts):
    connection = None
    for number in range(MOST_REQUESTS_EACH):
        if stop.exists():
            break
        try:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            body = json.dumps({"type": "message.created", "payload": {"number": f"{sender}-{number}"}}).encode()
            signature = hmac.new(secret, body, hashlib.sha256).hexdigest()
            headers = {"TinyTalk-Signature": signature, "Idempotency-Key": f"{sender}-{number}"}
            connection.request("POST", "/webhooks/tinytalk", body, headers)
            answer = connection.getresponse()
            answer.read()
            what = None if answer.status == 200 else str(answer.status)
            if sender % 2 or answer.will_close:
                connection.close()
                connection = None
        except (OSError, http.client.HTTPException) as error:
            what, connection = repr(error), None
        counts["sent" if what is None else what] += 1


def main():
    port, secret, stop = int(sys.argv[1]), sys.argv[2].encode(), pathlib.Path(sys.argv[3])
    each = [collections.Counter() for _ in range(SENDERS)]
    threads = [
        threading.Thread(target=send, args=(number, port, secret, stop, counts)) for number, counts in enumerate(each)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(each, collections.Counter())
    print(json.dumps({"sent": total.pop("sent", 0), "failed": total}))


if __name__ == "__main__":
    main()
