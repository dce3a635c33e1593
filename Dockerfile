# The image of one member: `make docker-build` makes raft-kv-store:latest. The build needs Docker's BuildKit (its
# default) or buildah, and no protoc. The final image holds the C library, the binary under its three names, and an
# empty /data that belongs to an unprivileged user; it has no shell.
#
# There is no HEALTHCHECK here: which port to ask depends on how the member is started. The compose files ask
# `kvorum status --only`, the Kubernetes manifests /livez and /readyz.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The final image has the same C library (Debian 12). Symbol names stay in the binary, for backtraces.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --package kvorum \
    && mkdir -p /out/bin /out/app /out/data \
    && objcopy --strip-debug target/release/kvorum /out/bin/kvorum \
    && ln -s kvorum /out/bin/raft-kv-store \
    && ln -s kvorum /out/bin/raft-kv \
    && ln -s /usr/local/bin/kvorum /out/app/raft-kv-store

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/bin/ /usr/local/bin/
# Where manifests written for the replaced store look for it.
COPY --from=build /out/app/ /app/
# A new volume mounted here takes over the owner.
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
WORKDIR /data
VOLUME ["/data"]
# gRPC, HTTP, metrics.
EXPOSE 8080 9090 9091
ENTRYPOINT ["/usr/local/bin/raft-kv-store"]
