# The server alone, as a user without rights: docker build -t bimip . (docs/operations.md, Container).
FROM rust:1.95-bookworm AS build
WORKDIR /build
# A C compiler and CMake are what aws-lc wants.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake \
    && rm -rf /var/lib/apt/lists/*
COPY . .
RUN cargo build --release --locked --bin bimip \
    && install -D -m 0755 target/release/bimip /out/usr/local/bin/bimip \
    && install -d -m 0700 /out/var/lib/bimip

FROM debian:bookworm-slim
COPY --from=build /out/usr/local/bin/bimip /usr/local/bin/bimip
# A named volume takes over the owner and mode of what it covers.
COPY --from=build --chown=10001:10001 /out/var/lib/bimip /var/lib/bimip
USER 10001:10001
WORKDIR /var/lib/bimip
# A container's metrics are asked for from another one; keep the port inside.
ENV BIMIP_DATA_DIR=/var/lib/bimip \
    BIMIP_METRICS_LISTEN=0.0.0.0:9464
VOLUME /var/lib/bimip
EXPOSE 4433/udp 4433/tcp 9464/tcp
STOPSIGNAL SIGTERM
# Asks over the control socket: neither curl nor a shell is needed.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["bimip", "status"]
ENTRYPOINT ["bimip"]
CMD ["serve"]
