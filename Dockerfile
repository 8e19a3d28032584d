# Debian with everything that setup.sh installs, to work in from any system that runs Docker; an
# editor that knows Dev Containers takes it from .devcontainer. The tree stays where it is:
#
#   docker build --target tools -t nsa . && docker run --rm -it -v "$PWD":/nsa nsa
FROM debian:12 AS tools
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gdb git less \
    python3-numpy
COPY setup.sh /tmp/setup/
COPY tests/clang_format.sh /tmp/setup/tests/
RUN sh /tmp/setup/setup.sh && rm -r /tmp/setup
WORKDIR /nsa
CMD ["bash"]

# The two commands of the README on a bare Debian: docker build --target readme .
FROM debian:12 AS readme
COPY . /nsa
WORKDIR /nsa
RUN sh setup.sh && make demo
RUN sh setup.sh && make test-all
CMD ["build/nsa", "list"]
