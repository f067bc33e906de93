"""Who may use the stand-in: the administrator's key, keys of users, tokens."""

import os
import secrets
from datetime import datetime, timedelta, timezone

from fastapi import Depends, HTTPException, Request
from jose import JWTError, jwt
from passlib.context import CryptContext
from sqlalchemy import select
from sqlalchemy.orm import Session

from db import get_db
from models import APIKey, User

JWT_SECRET = os.environ.get("JWT_SECRET", "")
ADMIN_API_KEY = os.environ.get("ADMIN_API_KEY", "")
AUTH_DISABLED = os.environ.get("AUTH_DISABLED", "").lower() in {"1", "true", "yes", "on"}

pwd_context = CryptContext(schemes=["bcrypt"], deprecated="auto")


def create_token(user: User) -> str:
    expires = datetime.now(timezone.utc) + timedelta(minutes=30)
    return jwt.encode({"sub": str(user.id), "exp": expires, "type": "access"}, JWT_SECRET, algorithm="HS256")


def _user_of_token(token: str, db: Session) -> User:
    try:
        payload = jwt.decode(token, JWT_SECRET, algorithms=["HS256"])
    except JWTError:
        raise HTTPException(status_code=401, detail="Invalid or expired token.")
    user = db.get(User, payload.get("sub"))
    if user is None:
        raise HTTPException(status_code=401, detail="User not found.")
    return user


def _user_of_key(key: str, db: Session) -> User:
    for row in db.scalars(select(APIKey).where(APIKey.key_prefix == key[:12], APIKey.revoked_at.is_(None))):
        if pwd_context.verify(key, row.key_hash):
            return db.get(User, row.created_by)
    raise HTTPException(status_code=401, detail="Invalid API key.")


async def verify_auth(request: Request, db: Session = Depends(get_db)) -> User | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return _user_of_token(token, db)
    key = request.headers.get("x-api-key")
    if key is not None:
        if ADMIN_API_KEY and secrets.compare_digest(key, ADMIN_API_KEY):
            return None
        return _user_of_key(key, db)
    if AUTH_DISABLED:
        return None
    raise HTTPException(status_code=401, detail="Authentication required.", headers={"WWW-Authenticate": "Bearer"})


async def require_auth(user: User | None = Depends(verify_auth), db: Session = Depends(get_db)) -> User:
    user = user or db.scalar(select(User))
    if user is None:
        raise HTTPException(status_code=401, detail="Authentication required.")
    return user
