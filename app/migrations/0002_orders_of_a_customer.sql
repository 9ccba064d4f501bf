-- A customer's orders, the newest first, from any place on.
CREATE INDEX orders_of_customer ON orders (customer_id, accepted_at DESC, id DESC);
