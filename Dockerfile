# hookward on nothing: one static binary and the CA roots, without a shell, as a user that owns nothing but
# /var/lib/hookward.
#
#   docker build -t hookward:0.1.0 .
#   docker run --read-only --cap-drop=ALL -p 8080:8080 -v ./hookward.toml:/etc/hookward/hookward.toml:ro \
#       -v hookward:/var/lib/hookward hookward:0.1.0
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ARG HOOKWARD_REVISION=unknown
ENV HOOKWARD_REVISION=$HOOKWARD_REVISION
RUN cargo static \
    && install -D target/*/release/hookward /image/usr/bin/hookward \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -d /image/var/lib/hookward

FROM scratch
COPY --from=build /image/usr /usr
COPY --from=build /image/etc /etc
# A named volume mounted here takes its owner over.
COPY --from=build --chown=65532:65532 /image/var/lib/hookward /var/lib/hookward
ENV PATH=/usr/bin
USER 65532:65532
EXPOSE 8080 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["hookward", "healthcheck"]
ENTRYPOINT ["hookward"]
CMD ["serve"]
