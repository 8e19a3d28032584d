# The two commands of the README on a bare Debian:  docker build -t nsa . && docker run --rm nsa
FROM debian:12
COPY . /nsa
WORKDIR /nsa
RUN sh setup.sh && make demo
RUN sh setup.sh && make test-all
CMD ["build/nsa", "list"]
