//! One warm CLI process per user.
