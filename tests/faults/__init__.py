"""The fault bench: `make test-faults`.

| scenario | file |
|---|---|
| 1,000 cuts, cuts after n bytes, flipped bits, silence, reordered connections, delay | `test_faults_cuts` |
| cut in the middle of an ACK, lost, doubled, swapped, replayed and forged messages | `test_faults_messages` |
| malformed and oversized frames, wrong certificates, two edges with one name | `test_faults_strangers` |
| kill -9 of either side, clock jumps, disk full at the edge | `test_faults_ends` |
| API server away for five minutes, and in other ways | `test_faults_api` |
| cut and killed during join, expired token and certificate, slowloris on the join port | `test_faults_joining` |
| a link that is down, flaps, loses, doubles and reorders packets | `test_faults_network` |

After each the API shows every last value, each device has what is wished of it, and no process has grown, ended or
logged a traceback. `KUBETWIN_FAULTS_OUTAGE_S=30` shortens the API server's outage of five minutes, and
`KUBETWIN_FAULTS_LOGS=<folder>` keeps the logs. Some need root (a small disk, a network namespace) or a C compiler (a
clock that can be set), and say so when they are skipped.
"""
