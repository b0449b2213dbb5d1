# The server alone, as an unprivileged user: docker build -t bimip . (docs/operations.md, Container).
# The build image has the C compiler and `make` that the build needs.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin bimip \
    && install -D -m 0755 target/release/bimip /out/usr/local/bin/bimip \
    && install -d -m 0700 /out/var/lib/bimip

FROM debian:bookworm-slim
COPY --from=build /out/usr/local/bin/bimip /usr/local/bin/bimip
# A new named volume takes the owner and mode of the directory that it is mounted on.
COPY --from=build --chown=10001:10001 /out/var/lib/bimip /var/lib/bimip
USER 10001:10001
WORKDIR /var/lib/bimip
# Metrics listen on all addresses, because another container scrapes them. Do not publish this port.
ENV BIMIP_DATA_DIR=/var/lib/bimip \
    BIMIP_METRICS_LISTEN=0.0.0.0:9464
VOLUME /var/lib/bimip
EXPOSE 4433/udp 4433/tcp 9464/tcp
STOPSIGNAL SIGTERM
# Uses the control socket, so neither curl nor a shell is needed.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["bimip", "status"]
ENTRYPOINT ["bimip"]
CMD ["serve"]
