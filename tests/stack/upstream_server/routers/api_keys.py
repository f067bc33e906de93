"""Users and their keys."""

import secrets
from datetime import datetime, timezone

from auth import create_token, pwd_context, require_auth
from db import get_db
from fastapi import APIRouter, Depends, HTTPException
from models import APIKey, RequestLog, User
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import Session

router = APIRouter()


class Credentials(BaseModel):
    email: str
    password: str
    name: str = ""


class Label(BaseModel):
    label: str


@router.post("/auth/register")
def register(body: Credentials, db: Session = Depends(get_db)):
    if db.scalar(select(User)) is not None:
        raise HTTPException(status_code=403, detail="Registration is closed.")
    user = User(name=body.name, email=body.email, password_hash=pwd_context.hash(body.password))
    db.add(user)
    db.commit()
    return {"access_token": create_token(user), "token_type": "bearer"}


@router.post("/auth/login")
def login(body: Credentials, db: Session = Depends(get_db)):
    user = db.scalar(select(User).where(User.email == body.email))
    if user is None or not pwd_context.verify(body.password, user.password_hash):
        raise HTTPException(status_code=401, detail="Invalid email or password.")
    return {"access_token": create_token(user), "token_type": "bearer"}


@router.get("/auth/me")
def me(user: User = Depends(require_auth)):
    return {"id": str(user.id), "name": user.name, "email": user.email}


@router.post("/api-keys", status_code=201)
def create_key(body: Label, user: User = Depends(require_auth), db: Session = Depends(get_db)):
    key = f"m0sk_{secrets.token_urlsafe(32)}"
    row = APIKey(key_prefix=key[:12], key_hash=pwd_context.hash(key), label=body.label, created_by=user.id)
    db.add(row)
    db.commit()
    return {"id": str(row.id), "key": key, "label": body.label}


@router.delete("/api-keys/{key_id}")
def revoke_key(key_id: str, user: User = Depends(require_auth), db: Session = Depends(get_db)):
    row = db.get(APIKey, key_id)
    if row is None or row.created_by != user.id:
        raise HTTPException(status_code=404, detail="API key not found.")
    row.revoked_at = datetime.now(timezone.utc)
    db.commit()
    return {"message": "API key revoked."}


@router.get("/requests")
def list_requests(user: User = Depends(require_auth), db: Session = Depends(get_db)):
    return [{"path": row.path} for row in db.scalars(select(RequestLog))]
