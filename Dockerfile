# One image for server, worker and commands (EXTRA=server), one for the gateway (EXTRA=gateway), and one for the stand-in
# for Stripe (EXTRA=sandbox). Nothing is written into it at run time:
# docker build --build-arg EXTRA=gateway --tag billing-gateway .
FROM python:3.11-slim AS build
WORKDIR /build
COPY constraints.txt .
RUN pip install --no-cache-dir --constraint constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m hatchling build --target wheel --directory /wheel
ARG EXTRA=server
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --constraint constraints.txt "$(echo /wheel/*.whl)[${EXTRA}]"

FROM python:3.11-slim
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home billing
COPY --from=build /venv /venv
COPY catalogs /catalogs
USER billing
CMD ["billing-svc", "serve"]
