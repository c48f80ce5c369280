-- For docker-compose.yml: the login of server, worker and commands. It owns nothing; `migrate` gives the role its rights.
\getenv password POSTGRES_PASSWORD
SELECT to_regrole('billing_service') IS NULL AS missing \gset
\if :missing
CREATE ROLE billing_service NOLOGIN;
\endif
CREATE ROLE billing_app LOGIN PASSWORD :'password' IN ROLE billing_service;
