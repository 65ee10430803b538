# syntax=docker/dockerfile:1
# Two images out of one build, for amd64 and arm64, without a shell:
#
#   docker buildx build --target pageserver --platform linux/amd64,linux/arm64 -t …/pageserver .    pageserver and pagectl
#   docker buildx build --target operator   --platform linux/amd64,linux/arm64 -t …/operator .
#
# Where no base image can be pulled, scripts/images-from-machine.sh makes the same two from this machine's own libraries.
FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS build
ARG BUILDARCH TARGETARCH
# Compiled for the other architecture rather than emulated, which would take hours.
RUN if [ "$BUILDARCH" != "$TARGETARCH" ]; then \
        case "$TARGETARCH" in amd64) cross=x86-64 ;; arm64) cross=aarch64 ;; *) exit 1 ;; esac; \
        apt-get update && apt-get install -y --no-install-recommends gcc-$cross-linux-gnu libc6-dev-$TARGETARCH-cross && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /src
COPY . .
ENV CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CC_x86_64_unknown_linux_gnu=x86_64-linux-gnu-gcc \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,id=target-$TARGETARCH,target=/src/target \
    case "$TARGETARCH" in amd64) triple=x86_64-unknown-linux-gnu ;; arm64) triple=aarch64-unknown-linux-gnu ;; *) exit 1 ;; esac && \
    rustup target add $triple && \
    cargo build --release --locked --target $triple -p server -p ctl -p operator --bins && \
    mkdir /out && cp target/$triple/release/pageserver target/$triple/release/pagectl target/$triple/release/operator /out/

FROM gcr.io/distroless/cc-debian12:nonroot AS pageserver
LABEL org.opencontainers.image.source=https://github.com/palimpsest/palimpsest org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /out/pageserver /out/pagectl /usr/local/bin/
# Numbers, since Kubernetes cannot tell whether a name is root's.
USER 65532:65532
EXPOSE 6400 6402 9898
ENTRYPOINT ["/usr/local/bin/pageserver"]

FROM gcr.io/distroless/cc-debian12:nonroot AS operator
LABEL org.opencontainers.image.source=https://github.com/palimpsest/palimpsest org.opencontainers.image.licenses=Apache-2.0
COPY --from=build /out/operator /usr/local/bin/
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/operator"]
