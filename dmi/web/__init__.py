"""What a small HTTP server is made of: HTTP/1.1 on h11, a routing table, Prometheus' text format, and the loop that
takes clients. Mappers serve their device API with it and the edge core its local one; those two meet in `dmi` only
(ADR 17).
"""
