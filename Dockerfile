# A small image: namegate, the C library and what else it is linked with (libelf, zlib), and nothing to run a shell with.
#
#     docker build -t namegate .
#
# helm/image.sh goes the same way without Docker and starts what comes out.
FROM rust:1-bookworm AS build
RUN apt-get update && \
    apt-get install -y --no-install-recommends clang llvm make gcc pkg-config libelf-dev zlib1g-dev libbpf-dev && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
ENV CARGO_PROFILE_RELEASE_STRIP=symbols
RUN cargo build --release --locked --bin namegate
RUN helm/image-root.sh target/release/namegate /image

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/bin
ENTRYPOINT ["/usr/bin/namegate"]
